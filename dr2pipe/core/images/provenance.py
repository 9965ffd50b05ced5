"""What a result says of its making in XMP, where picture archives and news agencies look for it."""

from __future__ import annotations

import re

# IPTC's term for a picture of which parts were made by a trained network.
SOURCE_TYPE = b"http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
_PROPERTY = b"Iptc4xmpExt:DigitalSourceType"
_RDF = b"http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_DESCRIPTION = (
    b'<rdf:Description xmlns:rdf="' + _RDF + b'" rdf:about=""'
    b' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    b" " + _PROPERTY + b'="' + SOURCE_TYPE + b'"/>'
)
_ALONE = b'<rdf:RDF xmlns:rdf="' + _RDF + b'">' + _DESCRIPTION + b"</rdf:RDF>"
_PACKET = (
    b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/">' + _ALONE + b'</x:xmpmeta><?xpacket end="w"?>'
)
_FORMER = re.compile(
    rb"\s+" + _PROPERTY + rb"\s*=\s*(\"[^\"]*\"|'[^']*')"
    rb"|<" + _PROPERTY + rb"\b[^>]*/>"
    rb"|<" + _PROPERTY + rb"\b[^>]*>.*?</" + _PROPERTY + rb"\s*>",
    re.DOTALL,
)


def declare_restored(xmp: bytes | None) -> bytes:
    """An XMP packet that says that a trained network made parts of the picture.

    Args:
        xmp: the packet of the picture that was restored, or None. All else that it says stays;
            what is no XMP is replaced.
    """
    if xmp is None:
        return _PACKET
    xmp = _FORMER.sub(b"", xmp)
    for end, inserted in ((b"</rdf:RDF>", _DESCRIPTION), (b"</x:xmpmeta>", _ALONE)):
        before, found, after = xmp.rpartition(end)
        if found:
            return before + inserted + end + after
    return _PACKET
