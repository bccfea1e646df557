"""Copies of a run's results on the Hugging Face hub or an rclone remote, each verified there by its checksum."""
