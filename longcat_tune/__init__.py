"""Fine-tune LongCat-Video with LoRA on your own clips."""

__version__ = "0.1.0"
