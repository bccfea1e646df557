"""Infrastructure other than Vast: SkyPilot's catalogue is the market, its list of boxes the proof.

SkyPilot asks the cloud itself for that list. It has no reliability, line or driver figures, so the box is checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from wan_train.base.text import one_line
from wan_train.base.units import GIB
from wan_train.box.rental import number_in
from wan_train.box.vast import VastError
from wan_train.launch.engine import EngineError, SkyEngine
from wan_train.launch.market import Listed, Power, serves
from wan_train.launch.model import Offer, Wants

T = TypeVar("T")
_POWERS = {"INIT": Power.COMING, "UP": Power.RUNNING, "STOPPED": Power.DOWN}


class SkyMarket:
    """One infrastructure. Its methods raise VastError, like those of every market."""

    def __init__(self, engine: SkyEngine, infra: str) -> None:
        self._engine = engine
        self._infra = infra

    def offers(self, wants: Wants) -> tuple[Offer, ...]:
        rows = _asked(lambda: self._engine.offers(self._infra, spot=wants.spot))
        read = [offer for row in rows if (offer := _offer(row, wants)) is not None]
        kinds = wants.gpus or (None,)
        found = [offer for offer in read if any(serves(offer, kind, 0.0) for kind in kinds)]
        return tuple(sorted(found, key=lambda offer: (offer.per_hour, offer.id)))

    def boxes(self) -> tuple[Listed, ...]:
        return tuple(
            Listed(
                id=name,
                label=name,
                power=_POWERS.get(word, Power.UNKNOWN),
                said=one_line(word, 40),
                gpu="",
                gpus=0,
                per_hour=None,
            )
            for name, word in _asked(self._engine.boxes).items()
        )

    def start(self, name: str) -> None:
        """Raise VastError: a box there ends itself instead of stopping, so there is nothing to start."""
        raise VastError(f"{name} cannot be started again on {self._infra}")

    def destroy(self, name: str) -> None:
        _asked(lambda: self._engine.down(name))
        if any(box.is_of(name) for box in self.boxes()):
            raise VastError(f"SkyPilot still lists {name}")

    def credit(self) -> float | None:
        return None


def _asked(question: Callable[[], T]) -> T:
    try:
        return question()
    except EngineError as error:
        raise VastError(str(error)) from error


def card_name(name: str) -> str:
    """Write SkyPilot's card name as providers do: `RTX4090` is `RTX 4090`, `A100-80GB` is `A100 80GB`."""
    return re.sub(r"^RTX(PRO)?(?=[A-Z]?\d)", lambda match: "RTX PRO " if match[1] else "RTX ", name).replace("-", " ")


def _offer(row: Mapping[str, Any], wants: Wants) -> Offer | None:
    gpu, gpus = row.get("gpu"), number_in(row, "gpus")
    price = number_in(row, "spot" if wants.spot else "price")
    if not isinstance(gpu, str) or not gpu or not gpus or gpus != int(gpus) or price is None:
        return None
    kind = row.get("type") if isinstance(row.get("type"), str) else ""
    ram = number_in(row, "ram_gib")
    return Offer(
        id=f"{gpu}:{int(gpus)}:{kind}",
        machine=f"{wants.infra} {kind or gpu}",
        gpu=one_line(card_name(gpu), 40),
        gpus=int(gpus),
        gpu_bytes=round((number_in(row, "gpu_gib") or 0.0) * GIB),
        per_hour=price,
        bid=price if wants.spot else None,
        ram_bytes=round(ram * GIB) if ram else None,
    )
