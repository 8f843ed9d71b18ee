"""What a run may be told: pydantic sections and two file formats; no torch, no disk beyond the files read."""
