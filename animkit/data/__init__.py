"""Data: clips out of videos and tables, camera moves out of clips, streams, caches of latents and text."""
