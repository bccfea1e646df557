"""Settings by flags, for one expert, by a config file and after `--`: one value, wherever it is shown or used."""

from __future__ import annotations

import json
from pathlib import Path

from support.trainers import ScriptedBox
from wan_train.engine.tensors import read_header


def test_what_is_asked_for_in_any_way_is_what_is_planned_trained_and_told(scripted_box: ScriptedBox) -> None:
    (scripted_box.root / "mine.toml").write_text("[train]\ngradient_accumulation_steps = 2\nlearning_rate = 5e-4\n")
    words = ["--rank", "64", "--high", "network_alpha=2", "--low", "max_train_epochs=2"]
    after = ["--lr_scheduler", "constant", "--learning_rate=1e-4", "--network_dim", "4", "--blocks_to_swap", "5"]
    done = scripted_box.train(*words, "--", "--config_file", "mine", *after, SCRIPTED_FAULT="oom@high@attempt=1")
    assert done.returncode == 0, done.stderr

    starts = {
        entry["place"]: entry["argv"] for entry in scripted_box.recorded("start") if "network_dim" in entry["argv"]
    }
    for expert, alpha, epochs in (("high", 2, 3), ("low", 16, 2)):
        argv = starts[expert]
        assert (argv["network_dim"], argv["learning_rate"], argv["lr_scheduler"]) == (4, 1e-4, "constant")
        assert (argv["network_alpha"], argv["max_train_epochs"], argv["config_file"]) == (alpha, epochs, None)
    # Three pictures are two steps an epoch.
    began = {event["step"]: event["steps"] for event in scripted_box.events("training_began")}
    assert began == {"train-high": 6, "train-low": 4}
    assert [event["epoch"] for event in scripted_box.events("epoch_ended") if event["step"] == "train-low"] == [1, 2]
    assert "epoch 3/3" in done.stdout
    assert "epoch 2/2" in done.stdout

    (retry,) = scripted_box.events("retry_scheduled")
    assert retry["changes"] == {"blocks_to_swap": 10}
    assert "blocks_to_swap 5 was set by the words after `--`" in retry["why"]
    swapped = [e["argv"]["blocks_to_swap"] for e in scripted_box.recorded("start") if e["place"] == "high"]
    assert swapped == [5, 10]

    run = scripted_box.run()
    plan = json.loads((run / "plan.json").read_text())
    high, low = plan["recipe"]["experts"]
    assert (high["training"]["network_dim"], high["training"]["learning_rate"]) == (4, 1e-4)
    assert high["sources"]["network_dim"] == {"origin": "words", "text": "the words after `--`"}
    assert low["sources"]["gradient_accumulation_steps"]["text"] == f"config file {scripted_box.root / 'mine.toml'}"
    report = json.loads(scripted_box.run_cli("report", "--json").stdout)
    rows = {row["name"]: (row["value"], row["source"]) for row in report["settings"]}
    assert (rows["learning_rate"], rows["lr_scheduler"]) == (("1e-4", "flag"), ("constant", "flag"))
    assert (rows["network_alpha (high)"], rows["network_alpha (low)"]) == (("2", "flag"), ("16", "default"))
    assert [(each["epochs"], each["of_epochs"]) for each in report["experts"]] == [(3, 3), (2, 2)]
    for name in ("HighNoise", "LowNoise"):
        assert read_header(run / f"WAN2.2-{name}_cat.safetensors").metadata["ss_network_dim"] == "4"

    shown = scripted_box.run_cli("recipe", "show", "last")
    assert "network_dim" in shown.stdout
    again = again_by(scripted_box, run / "recipe.toml")
    assert [spec["training"] for spec in again] == [spec["training"] for spec in (high, low)]
    assert scripted_box.run_cli("recipe", "diff", "last", str(run / "recipe.toml")).stdout == ("No setting differs.\n")


def again_by(box: ScriptedBox, recipe: Path) -> list[dict[str, object]]:
    """The experts that would be trained by a recipe."""
    done = box.run_cli("--dataset", str(box.dataset), "--recipe", str(recipe), "--yes", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, object]] = json.loads(done.stdout)["plan"]["recipe"]["experts"]
    return found


def test_each_expert_continues_from_its_own_lora(scripted_box: ScriptedBox) -> None:
    done = scripted_box.train()
    assert done.returncode == 0, done.stderr
    run = scripted_box.run()
    own = [str(run / f"WAN2.2-{name}_cat.safetensors") for name in ("HighNoise", "LowNoise")]
    for named in (run.name, str(run)):
        assert weights(scripted_box, "--network-weights", named) == own
    (run / "one").mkdir()
    (run / "one" / "my_low_noise.safetensors").write_bytes(Path(own[1]).read_bytes())
    low = str(run / "one" / "my_low_noise.safetensors")
    assert weights(scripted_box, "--experts", "low", "--network-weights", str(run / "one")) == [low]
    assert weights(scripted_box, "--low", f"network_weights={low}") == [None, low]
    done = scripted_box.run_cli(*scripted_box.train_words("--network-weights", str(run / "one")), "--dry-run")
    assert done.returncode == 2
    assert "--high network_weights=FILE" in done.stderr


def weights(box: ScriptedBox, *words: str) -> list[object]:
    # The scripted trainer's LoRAs have rank 1.
    done = box.run_cli(*box.train_words("--rank", "1", *words), "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    return [spec["training"]["network_weights"] for spec in json.loads(done.stdout)["plan"]["recipe"]["experts"]]
