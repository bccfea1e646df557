"""Answers what a training with this dataset.toml would see: for each dataset and bucket the caches, in name order.

JSON on the last line: a list of {bucket: [[latent cache, text cache], ...]}. Runs in the trainer's environment.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from musubi_tuner.dataset import config_utils
from musubi_tuner.dataset.image_video_dataset import ARCHITECTURE_WAN

user = config_utils.load_user_config(sys.argv[1])
generator = config_utils.BlueprintGenerator(config_utils.ConfigSanitizer())
blueprint = generator.generate(user, argparse.Namespace(), architecture=ARCHITECTURE_WAN)
group = config_utils.generate_dataset_group_by_blueprint(blueprint.dataset_group, training=True)
answer = [
    {
        "x".join(map(str, bucket)): sorted(
            [Path(item.latent_cache_path).name, Path(item.text_encoder_output_cache_path).name] for item in items
        )
        for bucket, items in dataset.batch_manager.buckets.items()
    }
    for dataset in group.datasets
]
sys.stdout.write(f"\n{json.dumps(answer)}\n")
