"""From a config to a running TPU slice: python -m launch.create, run, watch, status, logs, profile, delete."""
