"""Other ways to do the main job, each written as well as we could: what `compare.py` measures Meterline against."""
