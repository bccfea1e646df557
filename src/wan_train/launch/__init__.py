"""From a computer without a GPU: rent boxes, train there, bring the LoRAs home, and leave nothing that costs money."""
