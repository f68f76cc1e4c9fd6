"""A script: the corpus of a config as the code that it is run with prepares it, every clip decoded and checked.

``python -P speechlab/verify.py CONFIG OUT [section.key=value …]`` with another checkout's folder as PYTHONPATH asks that
checkout: :mod:`speechlab.reproduce` does, before it trains with the code of another commit. OUT gets the manifest's lines,
and for each clip that cannot be read, or holds other samples than the manifest says, the reason.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path


def main(config: str, out: str, *overrides: str) -> None:
    """Prepare and look at every clip.

    Args:
        config: YAML file.
        out: JSON file to write: ``manifest``, ``broken`` (id to reason), and ``problem`` where there is no corpus at all.
        overrides: Values in place of the file's.
    """
    from tqdm.std import tqdm  # not the lab's own: another checkout may not have that yet

    from speechlab import config as configs
    from speechlab import corpora
    from speechlab.errors import InputError

    found: dict[str, object] = {"manifest": [], "broken": {}, "problem": ""}
    try:
        corpus = corpora.configured(configs.load(config, list(overrides)).corpus)
    except InputError as e:
        found["problem"] = str(e)
    else:
        broken = {}
        cuts = [cut for split in corpora.SPLITS for cut in corpus.cuts[split]]
        for cut in tqdm(cuts, desc="clips", unit="clip", mininterval=0.3):
            try:
                corpora.load_audio(cut)
            except InputError as e:
                broken[cut.id] = str(e)
        found |= {"manifest": corpus.manifest, "broken": broken}
    Path(out).write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a word: the caller has some
    main(*sys.argv[1:])
