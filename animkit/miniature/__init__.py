"""The recipe of the miniature: a Stable Diffusion of a few million parameters, trained from nothing on the cartoon world."""
