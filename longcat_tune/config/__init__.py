"""What a run may be told: pydantic sections and the two file formats; no torch, no disk beyond reading the file itself."""
