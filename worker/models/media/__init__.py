"""Images, sounds and videos of rows, in the form in which pipelines take them.

`open_media` reads a row's value, from inline data or a file; `images` and `sounds` decode it, `wav` decodes plain WAV
files, and `resampling` changes the rate of a sound.
"""
