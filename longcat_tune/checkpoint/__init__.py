"""LoRA files and run state, out and back."""
