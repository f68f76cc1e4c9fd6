"""What somebody sent, decoded in a process of its own, with limits on size, memory, time and length.

Notable: a file that was made to do harm ends that process and no more. It loads the decoders and nothing else of the
lab, and so is there in a moment.

Not covered: what the decoders may read of the disk, which they have no reason to.
"""

from __future__ import annotations

import resource

from speechlab import audio, pool
from speechlab.audio import Wave
from speechlab.errors import InputError
from speechlab.units import Seconds, clock

LARGEST = 16 * 2**20  # bytes of a file: Bokeh's server takes messages of 20 MB, and base64 adds a third
LONGEST: Seconds = 900.0  # of a clip, decoded
MEMORY = 4 * 2**30  # bytes that the process may take, and …
PRELOADED = [__name__]
PATIENCE = 60  # … seconds of processor time


def decoded(data: bytes, name: str = "the file") -> Wave:
    """What somebody sent, decoded in a process of its own.

    Args:
        data: Of a file of any format.
        name: What to call it in messages.

    Returns:
        16 kHz samples.

    Raises:
        InputError: if it is too large, too long, not audio, or takes its process down.
    """
    if len(data) > LARGEST:
        got = f"{name}: {len(data) / 2**20:.0f} MB"
        raise InputError("The file is too large.", got=got, expected=f"at most {LARGEST / 2**20:.0f} MB", do="send a part of it, or as MP3")
    pool.preload(*PRELOADED)
    ((_, found),) = pool.over(_within_limits, [data], workers=1)
    if isinstance(found, pool.Crashed):
        raise InputError("The file took more memory or time than audio does.", got=name, expected=f"at most {clock(LONGEST)} of audio")
    if isinstance(found, InputError):
        raise found
    return found


def _within_limits(data: bytes) -> Wave | InputError:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (PATIENCE, PATIENCE))
    try:
        return audio.decode(data, max_seconds=LONGEST)
    except InputError as e:
        return e
    except MemoryError:
        return InputError("The file took more memory than audio does.", got=f"over {MEMORY / 2**30:.0f} GB", expected="audio")
