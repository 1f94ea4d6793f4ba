"""Output for people: tables, charts, the report, and the progress of a training."""
