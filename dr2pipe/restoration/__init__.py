"""Both stages together: restoring, inpainting, several samples."""
