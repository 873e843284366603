"""Recurrent cores, one file each; `base.Core` is what they share."""
