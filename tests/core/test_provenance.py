"""Results say in XMP that a network made parts of them, and keep all else that XMP said."""

import io
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from dr2pipe.core import images
from dr2pipe.core.images.metadata import Metadata

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
EXT = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
PROPERTY = f"{{{EXT}}}DigitalSourceType"
TERM = "http://cv.iptc.org/newscodes/digitalsourcetype/"
HEAD = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
)
TAIL = '</rdf:RDF></x:xmpmeta>\n<?xpacket end="w"?>'
SPACES = f'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:Iptc4xmpExt="{EXT}"'


def packet(inside):
    return f"{HEAD}{inside}{TAIL}".encode()


def said(xmp):
    """Every value of DigitalSourceType in a packet."""
    root = ElementTree.fromstring(xmp.decode().removeprefix("\ufeff"))
    found = []
    for element in root.iter():
        if PROPERTY in element.attrib:
            found.append(element.attrib[PROPERTY])
        if element.tag == PROPERTY:
            found.append(element.attrib.get(f"{RDF}resource") or (element.text or "").strip())
    return found


DESCRIPTIONS = {
    "nothing of it": f'<rdf:Description rdf:about="" {SPACES} dc:creator="Müller"/>',
    "an attribute": f'<rdf:Description rdf:about="" {SPACES} dc:creator="Müller"\n '
    f'Iptc4xmpExt:DigitalSourceType = "{TERM}digitalCapture"/>',
    "single quotes": f"<rdf:Description rdf:about='' {SPACES} dc:creator='Müller' "
    f"Iptc4xmpExt:DigitalSourceType='{TERM}negativeFilm'></rdf:Description>",
    "an element": f'<rdf:Description rdf:about="" {SPACES} dc:creator="Müller">'
    f"<Iptc4xmpExt:DigitalSourceType>\n{TERM}print</Iptc4xmpExt:DigitalSourceType></rdf:Description>",
    "a resource": f'<rdf:Description rdf:about="" {SPACES} dc:creator="Müller">'
    f'<Iptc4xmpExt:DigitalSourceType rdf:resource="{TERM}print"/></rdf:Description>',
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_packet_says_it_once_and_keeps_the_rest(name):
    declared = images.declare_restored(packet(DESCRIPTIONS[name]))
    assert said(declared) == [f"{TERM}compositeWithTrainedAlgorithmicMedia"]
    assert "Müller" in declared.decode()
    assert images.declare_restored(declared) == declared or said(
        images.declare_restored(declared)
    ) == said(declared)


@pytest.mark.parametrize(
    "xmp", [None, b"", b"\xff\xfe rubbish", b"<x:xmpmeta xmlns:x='adobe:ns:meta/'></x:xmpmeta>"]
)
def test_without_a_packet_there_is_a_new_one(xmp):
    assert said(images.declare_restored(xmp)) == [f"{TERM}compositeWithTrainedAlgorithmicMedia"]


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
@pytest.mark.parametrize("length", [10, 100_000])
def test_every_kind_of_file_carries_it(ending, length):
    """Also where the rest of the packet is too long for the kind."""
    long = packet(f'<rdf:Description rdf:about="" {SPACES} dc:creator="{"M" * length}"/>')
    metadata = Metadata(xmp=images.declare_restored(long))
    pixels = np.zeros((8, 8, 3), np.uint8)
    data = images.encode_picture(f"x.{ending}", pixels, metadata=metadata)
    picture = Image.open(io.BytesIO(data))
    xmp = picture.info.get("xmp") or picture.info["XML:com.adobe.xmp"].encode()
    assert said(xmp) == [f"{TERM}compositeWithTrainedAlgorithmicMedia"]
    assert (b"M" * length in xmp) == (ending != "jpg" or length < 60_000)
