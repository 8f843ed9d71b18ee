"""The loop; free of LongCat names."""
