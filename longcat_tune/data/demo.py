"""A made-up world for the miniature: one coloured shape that moves over a plain background, and its captions.

Knows names, captions and which scenes there are; how a scene becomes pixels is demo_drawing's business.
Neither files nor torch: the same scene on every machine.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np


class Colour(NamedTuple):
    """A colour's sRGB value and its Chinese name."""

    rgb: tuple[int, int, int]
    chinese: str


class Outline(NamedTuple):
    """A shape with equal points all around.

    Attributes:
        points: corners that touch the circle around the shape; 0 is that circle itself.
        inner: how far from the centre the outline is half-way between two points, as a share of the radius;
            cos(pi / points) makes a regular polygon, less a star.
        chinese: its name.
    """

    points: int
    inner: float
    chinese: str

    @property
    def is_notched(self) -> bool:
        """Whether it is no regular polygon but dented between its points."""
        return self.points > 0 and self.inner < math.cos(math.pi / self.points) - 1e-6

    @property
    def area(self) -> float:
        """Share of the circle around it."""
        if self.points == 0:
            return 1.0
        return self.points * self.inner * math.sin(math.pi / self.points) / math.pi


class Pose(NamedTuple):
    """Where a motion has brought a shape.

    Attributes:
        x: shift to the right, in units of the scene's travel.
        y: the same downwards, as rows grow.
        scale: share of the scene's size, at most 1.
        turn: in radians.
    """

    x: float = 0.0
    y: float = 0.0
    scale: float = 1.0
    turn: float = 0.0


class Motion(NamedTuple):
    """What a shape does in a clip.

    Attributes:
        english: the predicate of the caption.
        chinese: the same.
        path: from the moment, -0.5 at the first frame to 0.5 at the last, to the pose.
    """

    english: str
    chinese: str
    path: Callable[[float], Pose]


def _straight(x: int, y: int) -> Callable[[float], Pose]:
    return lambda moment: Pose(x * moment, y * moment)


def _circle(moment: float, turns: int) -> Pose:
    """A whole circle from its top; turns is 1 clockwise on the screen and -1 against the clock."""
    angle = 2 * math.pi * (moment + 0.5)
    return Pose(0.8 * turns * math.sin(angle), -0.8 * math.cos(angle))


def _spiral(moment: float) -> Pose:
    """One turn outwards from the middle, clockwise on the screen."""
    way = moment + 0.5
    angle = 2 * math.pi * way
    return Pose(0.95 * way * math.cos(angle), 0.95 * way * math.sin(angle))


COLOURS: dict[str, Colour] = {
    "red": Colour((214, 40, 40), "红色"),
    "green": Colour((38, 166, 65), "绿色"),
    "blue": Colour((38, 84, 214), "蓝色"),
    "yellow": Colour((247, 214, 48), "黄色"),
    "purple": Colour((138, 43, 190), "紫色"),
    "cyan": Colour((40, 196, 214), "青色"),
    "white": Colour((242, 242, 242), "白色"),
    "black": Colour((18, 18, 18), "黑色"),
}
SHAPES: dict[str, Outline] = {
    "circle": Outline(0, 1.0, "圆形"),
    "square": Outline(4, math.cos(math.pi / 4), "方形"),
    "triangle": Outline(3, math.cos(math.pi / 3), "三角形"),
    "cross": Outline(4, 0.34, "十字形"),
    "diamond": Outline(2, 0.5, "菱形"),
}
DIRECTIONS: dict[str, Motion] = {
    "left": Motion("moves left", "向左移动", _straight(-1, 0)),
    "right": Motion("moves right", "向右移动", _straight(1, 0)),
    "up": Motion("moves up", "向上移动", _straight(0, -1)),
    "down": Motion("moves down", "向下移动", _straight(0, 1)),
    "up and left": Motion("moves up and left", "向左上移动", _straight(-1, -1)),
    "up and right": Motion("moves up and right", "向右上移动", _straight(1, -1)),
    "down and left": Motion("moves down and left", "向左下移动", _straight(-1, 1)),
    "down and right": Motion("moves down and right", "向右下移动", _straight(1, 1)),
    "still": Motion("rests", "静止", _straight(0, 0)),
}
CHANGES: dict[str, Motion] = {
    "bounce sideways": Motion(
        "bounces off the right side", "向右反弹", lambda moment: Pose(x=0.5 - 2 * abs(moment))
    ),
    "bounce upright": Motion(
        "bounces off the floor", "在地面弹起", lambda moment: Pose(y=0.5 - 2 * abs(moment))
    ),
    "circle": Motion("circles clockwise", "顺时针绕圈", lambda moment: _circle(moment, 1)),
    "circle back": Motion("circles anticlockwise", "逆时针绕圈", lambda moment: _circle(moment, -1)),
    "turn": Motion("turns", "旋转", lambda moment: Pose(turn=math.pi / 2 * moment)),
    "grow": Motion("grows", "变大", lambda moment: Pose(scale=0.75 + 0.5 * moment)),
    "shrink": Motion("shrinks", "变小", lambda moment: Pose(scale=0.75 - 0.5 * moment)),
}
MOTIONS = DIRECTIONS | CHANGES
"""What the miniature has learnt: it knows COLOURS, SHAPES and MOTIONS, and none of the concepts below."""

Concept = Literal["star", "orange", "spiral"]
CONCEPTS: dict[Concept, str] = {"star": "shape", "orange": "colour", "spiral": "motion"}
"""What to fine-tune the miniature on, and which field of Names it is new in."""
ALL_COLOURS = COLOURS | {"orange": Colour((245, 130, 20), "橙色")}
ALL_SHAPES = SHAPES | {"star": Outline(5, 0.38, "星形")}
ALL_MOTIONS = MOTIONS | {"spiral": Motion("moves in a spiral", "螺旋移动", _spiral)}

CHANGES_SHARE = 0.35
"""Share of random scenes whose shape does something else than move straight or rest."""
HELD_OUT_SHARE = 12
"""One in so many combinations of names is never drawn for training."""
TAUGHT, ASKED, KEPT = 1, 2, 3
"""Seeds of a concept's clips, of the captions it is asked for with, and of clips of what is known."""
PATH_SAMPLES = np.linspace(-0.5, 0.5, 41)


@dataclass(frozen=True, slots=True)
class Names:
    """What a caption says.

    Attributes:
        shape: a key of ALL_SHAPES.
        colour: a key of ALL_COLOURS.
        motion: a key of ALL_MOTIONS.
        background: a key of ALL_COLOURS.
    """

    shape: str
    colour: str
    motion: str
    background: str

    @property
    def caption(self) -> str:
        """`a red circle moves right on a blue background`."""
        article = "an" if self.colour[0] in "aeiou" else "a"
        what = f"{article} {self.colour} {self.shape} {ALL_MOTIONS[self.motion].english}"
        return f"{what} on a {self.background} background"

    @property
    def captions(self) -> tuple[str, str, str]:
        """The same said at length, in short, and in Chinese."""
        colour, background = ALL_COLOURS[self.colour].chinese, ALL_COLOURS[self.background].chinese
        shape, motion = ALL_SHAPES[self.shape].chinese, ALL_MOTIONS[self.motion]
        return (
            self.caption,
            f"{self.colour} {self.shape} {motion.english} over {self.background}",
            f"一个{colour}的{shape}在{background}背景上{motion.chinese}",
        )

    @property
    def is_held_out(self) -> bool:
        """Whether the miniature was never shown this combination, though it knows every name."""
        words = "/".join((self.shape, self.colour, self.motion, self.background))
        return hashlib.blake2b(words.encode(), digest_size=4).digest()[0] % HELD_OUT_SHARE == 0


@dataclass(frozen=True, slots=True)
class Scene(Names):
    """One clip before it has a size or a length.

    Attributes:
        x: where the shape is half-way along its path, in 0..1: 0 touches the left edge, 1 the right one.
        y: the same from the upper edge to the lower one.
        travel: the way it covers in the whole clip, as a share of what x or y can span.
        size: radius of the circle around the shape, as a share of the frame's shorter side.
        angle: turn of the shape in radians.
    """

    x: float = 0.5
    y: float = 0.5
    travel: float = 0.6
    size: float = 0.3
    angle: float = 0.0


def random_scene(rng: np.random.Generator, **fixed: str) -> Scene:
    """Draw a scene whose shape stays inside the frame and differs from its background.

    Args:
        rng: decides what is not fixed.
        fixed: names to keep, as the fields of Names.
    """
    colour, background = rng.choice(list(COLOURS), size=2, replace=False)
    motions = CHANGES if rng.random() < CHANGES_SHARE else DIRECTIONS
    drawn = {
        "colour": str(colour),
        "background": str(background),
        "motion": str(rng.choice(list(motions))),
        "shape": str(rng.choice(list(SHAPES))),
    }
    if drawn["motion"] == "turn" and drawn["shape"] == "circle":
        drawn["shape"] = "square"
    if fixed.get("colour") == drawn["background"] or fixed.get("background") == drawn["colour"]:
        drawn["colour"], drawn["background"] = drawn["background"], drawn["colour"]
    return place(rng, Names(**{**drawn, **fixed}))


def place(rng: np.random.Generator, names: Names) -> Scene:
    """Draw the numbers of a scene whose names are given: place, way, size and angle."""
    reaches = _reach(names.motion)
    travel = rng.uniform(0.4, min(0.62, 0.48 / max(*reaches, 0.5)))
    margin_x, margin_y = (travel * reach for reach in reaches)
    # A codec fills the notches of smaller ones.
    smallest = 0.34 if ALL_SHAPES[names.shape].is_notched else 0.26
    return Scene(
        names.shape,
        names.colour,
        names.motion,
        names.background,
        x=rng.uniform(margin_x, 1 - margin_x),
        y=rng.uniform(margin_y, 1 - margin_y),
        travel=travel,
        # A spiral needs room.
        size=rng.uniform(smallest, smallest + 0.02 if names.motion == "spiral" else 0.37),
        angle=rng.uniform(-0.15, 0.15),
    )


def _reach(motion: str) -> tuple[float, float]:
    """How far a motion goes from its middle along x and y, in units of travel."""
    poses = [ALL_MOTIONS[motion].path(float(moment)) for moment in PATH_SAMPLES]
    return max(abs(pose.x) for pose in poses), max(abs(pose.y) for pose in poses)


def all_names(*, concepts: bool = False) -> Iterator[Names]:
    """Every combination that the miniature can be asked for.

    Args:
        concepts: with those that it has never been shown.
    """
    shapes, colours, motions = (
        (ALL_SHAPES, ALL_COLOURS, ALL_MOTIONS) if concepts else (SHAPES, COLOURS, MOTIONS)
    )
    for shape, colour, motion, background in itertools.product(shapes, colours, motions, colours):
        # Nobody sees a circle turn.
        if colour != background and (shape, motion) != ("circle", "turn"):
            yield Names(shape, colour, motion, background)


def held_out_names(count: int) -> tuple[Names, ...]:
    """Combinations that the miniature has never been shown, in a fixed random order.

    Raises:
        ValueError: there are fewer.
    """
    found: Sequence[Names] = [names for names in all_names() if names.is_held_out]
    if count > len(found):
        msg = f"count ({count}) must be at most {len(found)}, the number of held-out combinations"
        raise ValueError(msg)
    order = np.random.default_rng(0).permutation(len(found))
    return tuple(found[index] for index in order[:count])


def concept_scenes(concept: Concept, count: int = 12) -> tuple[Scene, ...]:
    """Clips that teach the miniature something new, with all else that they show as even as can be."""
    rng = np.random.default_rng((TAUGHT, list(CONCEPTS).index(concept)))
    scenes = []
    for number in range(count):
        names = {
            "shape": list(SHAPES)[number % len(SHAPES)],
            "colour": list(COLOURS)[number % len(COLOURS)],
            "motion": list(DIRECTIONS)[number % len(DIRECTIONS)],
            # An odd number apart from the colour, so that they never meet.
            "background": list(COLOURS)[(3 * number + 1) % len(COLOURS)],
        }
        scenes.append(place(rng, Names(**names | {CONCEPTS[concept]: concept})))
    return tuple(scenes)


def known_scenes(count: int = 72) -> tuple[Scene, ...]:
    """Clips of what the miniature knows: beside those of a concept they keep it from forgetting."""
    rng = np.random.default_rng(KEPT)
    drawn = (random_scene(rng) for _ in itertools.count())
    return tuple(itertools.islice((scene for scene in drawn if not scene.is_held_out), count))


def concept_names(concept: Concept, count: int) -> tuple[Names, ...]:
    """What to ask for after those clips: combinations that none of them shows, moving straight as they do."""
    rng = np.random.default_rng((ASKED, list(CONCEPTS).index(concept)))
    taught = {scene.caption for scene in concept_scenes(concept)}
    drawn = (
        random_scene(rng, **{"motion": str(rng.choice(list(DIRECTIONS))), CONCEPTS[concept]: concept})
        for _ in itertools.count()
    )
    return tuple(itertools.islice((names for names in drawn if names.caption not in taught), count))


def concept_prompts(concept: Concept) -> dict[str, str]:
    """Prompts that show what was learnt and what was kept, by name: two thirds have the concept in them."""
    asked = (*concept_names(concept, 4), *held_out_names(2))
    return {names.captions[1].replace(" ", "-"): names.caption for names in asked}


def demo_scenes(count: int = 8) -> tuple[Scene, ...]:
    """Always the same clips: every shape, colour and straight motion among eight."""
    shapes, colours, motions = list(SHAPES), list(COLOURS), ("right", "left", "down", "up")
    return tuple(
        Scene(
            shape=shapes[index % len(shapes)],
            colour=colours[index % len(colours)],
            motion=motions[index % len(motions)],
            background=colours[(index + 2) % len(colours)],
            size=0.26 + 0.03 * (index % 3),
        )
        for index in range(count)
    )
