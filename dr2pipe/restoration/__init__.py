"""Both stages together, on batches of tensors.

``restorer`` restores, ``samples`` restores several times with different noise, ``inpainter``
fills holes. :func:`~dr2pipe.restoration.restorer.build_restorer` and
:func:`~dr2pipe.restoration.inpainter.load_inpainter` load the networks.
"""
