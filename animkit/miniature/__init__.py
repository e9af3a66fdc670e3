"""The recipe of the miniature: a Stable Diffusion of a few million parameters, trained on the cartoon world alone."""
