"""Evaluations of real clips with answers made up, so that every error is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from speechlab import evaluation
from speechlab.decoding import Decoded
from speechlab.evaluation import Evaluation


def clips(prompts: Any, count: int) -> list[Any]:
    """Test clips of one to three seconds, by id."""
    return [cut for cut in prompts.cuts["test"] if 1 < cut.duration < 3][:count]


def heard(
    cuts: Sequence[Any],
    texts: Sequence[tuple[str, str]],
    confidences: Sequence[Sequence[float]] | None = None,
    ids: Sequence[str] = (),
    speakers: Sequence[str] = (),
    **about: Any,
) -> Evaluation:
    """An evaluation of clips in which each text was heard as another.

    Args:
        cuts: Whose ids and durations it has.
        texts: Of each clip what was said, and what was heard.
        confidences: A number for each word heard; None says nothing.
        ids: Instead of the cuts'.
        speakers: Instead of the cuts'.
        about: Other fields of the evaluation.
    """
    answers = [
        Decoded(
            id=ids[i] if ids else cut.id,
            speaker=speakers[i] if speakers else cut.supervisions[0].speaker,
            duration=cut.duration,
            reference=said,
            hypothesis=text,
            seconds=0.1,
            confidences=tuple(confidences[i]) if confidences else (),
        )
        for i, (cut, (said, text)) in enumerate(zip(cuts, texts, strict=True))
    ]
    usual: dict[str, Any] = {"system": "finetuned", "condition": "clean", "context": "silence", "weights_sha256": "w" * 64}
    usual |= {"heard_sha256": "h" * 64, "how": {"precision": "fp32"}, "memory_bytes": 0.0, "notes": {}}
    return evaluation.tabled(answers, "basic", **(usual | about))
