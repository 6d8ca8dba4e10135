"""Turn a refining strategy's name and options into a refiner (lossy), or into a drafter that the target verifies."""

from __future__ import annotations

from outpace.drafters.protocol import Drafter
from outpace.drafters.refine.refined_draft import RefinedDraft
from outpace.drafters.refine.refiner import Refiner
from outpace.drafters.refine.rules import ByConfidence, MaskPredict, Rule
from outpace.engine.loaded import LoadedModel
from outpace.errors import UsageError
from outpace.types import Options

REFINERS = ("block_diffusion", "mask_predict")
_OPTIONS = ("block", "passes", "threshold", "unmask", "remask", "slide", "predict_length", "verified")
_ONLY_BLOCKS = ("threshold", "unmask", "remask", "slide")
_THRESHOLDS = {"confidence": 0.9, "factor": 1.0, "entropy": 0.1}  # see `ByConfidence`; the first is Fast-dLLM's
_DEFAULTS = Options()
_PASSES = 10  # of mask-predict, as in its paper
_UNTRAINED = (
    "this model was not trained to fill masks, so what it refines is of little use: load it with adapter=PATH, or add "
    "verified=True"
)


def refiner_for(target: LoadedModel, options: Options, name: str) -> Refiner | None:
    """Return the refiner that writes a call's text in place of the target; None where the target writes or verifies.

    A network that can only fill masks does so by itself ("auto"); raises UsageError where it is asked for anything
    else.
    """
    if target.filling.sees_all and name not in REFINERS:
        if name != "auto":
            raise UsageError(
                f"{target.name} fills masks and has no next token, so strategy {name!r} cannot work: use "
                "block_diffusion or mask_predict (both lossy), or auto"
            )
        name = "block_diffusion"
        _check_lossy(options, (name,))
    return None if name not in REFINERS or options.verified else _refiner(target, options, name)


def refined_draft(target: LoadedModel, options: Options, name: str) -> Drafter:
    """Return the drafter whose guesses are a refiner's; raises UsageError where the options do not ask for one."""
    assert options.verified, "check_refining comes first"
    passes = options.passes or 1
    given = (options.block, options.threshold, options.unmask, options.remask, options.predict_length)
    return target.drafter(
        ("refined", name, passes, *given),
        lambda: RefinedDraft(_refiner(target, options, name, passes), target.runner, passes),
    )


def warnings_of(target: LoadedModel, refiner: Refiner | None) -> list[str]:
    """Return what a caller of a refiner should know."""
    return [_UNTRAINED] if refiner is not None and not target.filling.is_trained else []


def _refiner(target: LoadedModel, options: Options, name: str, passes: int | None = None) -> Refiner:
    filling = target.filling
    if name == "mask_predict":
        rule: Rule = MaskPredict(passes or options.passes or _PASSES, options.predict_length)
        return Refiner(name, filling, rule, options.block)
    passes = passes or options.passes
    threshold = options.threshold
    if threshold is None and (passes is None or options.verified):
        threshold = _THRESHOLDS[options.unmask]
    by_confidence = ByConfidence(
        options.unmask, threshold, passes, filling.schedule, options.remask, filling.by_entropy
    )
    length = options.block or filling.block or None
    return Refiner(name, filling, by_confidence, length, slides=options.slide)


def check_refining(options: Options, names: tuple[str, ...]) -> None:
    """Raise UsageError for options of refiners that cannot go together, or would be ignored."""
    own = [name for name in names if name in REFINERS]
    if not own:
        _refuse(options, _OPTIONS, f"belongs to {' and '.join(REFINERS)}, but the strategy is {'+'.join(names)!r}")
        return
    if own[0] == "mask_predict":
        _refuse(options, _ONLY_BLOCKS, "belongs to block_diffusion: mask_predict fills everything in every pass")
    else:
        _refuse(options, ("predict_length",), "belongs to mask_predict: block_diffusion writes until the text ends")
    if options.slide and (options.passes is not None or options.verified):
        what = "verified=True, whose block is a draft" if options.verified else f"passes={options.passes}"
        raise UsageError(f"slide=True cannot go with {what}: a block that moves on has no end to count passes to")
    if options.unmask == "confidence" and options.threshold is not None and options.threshold > 1:
        raise UsageError(f'threshold must be in [0, 1] with unmask="confidence", got {options.threshold}')
    if not options.verified:
        _check_lossy(options, names)


def _refuse(options: Options, given: tuple[str, ...], why: str) -> None:
    for name in given:
        value, default = getattr(options, name), getattr(_DEFAULTS, name)
        if value is not default and value != default:
            raise UsageError(f"{name}={value!r} {why}")


def _check_lossy(options: Options, names: tuple[str, ...]) -> None:
    """Refuse what needs the target's own distribution, token after token: a refiner's text has none."""
    name = next(name for name in names if name in REFINERS)
    cure = "add verified=True (the target then checks every token), or leave it out"
    if len(names) > 1:
        raise UsageError(
            f"strategy {'+'.join(names)!r}: what {name} writes is not verified, so nobody else drafts: {cure}"
        )
    sampling = options.sampling
    unused = {
        "constraint": options.constraint is not None,
        "logits_processors": bool(options.logits_processors),
        "logprobs": options.logprobs is not None,
        "max_draft": options.max_draft is not None,
        "trace": options.trace,
        f"verification={options.verification!r}": options.verification != "exact",
        "repetition_penalty": sampling.repetition_penalty != 1.0,
        "presence_penalty": sampling.presence_penalty != 0.0,
        "frequency_penalty": sampling.frequency_penalty != 0.0,
    }
    for option, is_given in unused.items():
        if is_given:
            raise UsageError(f"{option} cannot work with strategy {name!r}, whose tokens are not the target's: {cure}")
