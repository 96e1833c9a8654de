"""A procedurally rendered, fully labelled world for tests, demonstrations and teaching."""

from __future__ import annotations

from nearfar.worlds import rules
from nearfar.worlds.ask import QUESTIONS, Questions, answer
from nearfar.worlds.compose import Agreement, agreement, compose
from nearfar.worlds.edit import EDITS, Change, Edited
from nearfar.worlds.factors import COLOURS, PLACES, SHAPES, SIZES, TEXTURES, Factors
from nearfar.worlds.grammar import DIRECTIONS, Noun
from nearfar.worlds.joint import Joint
from nearfar.worlds.motion import Motion
from nearfar.worlds.read import read
from nearfar.worlds.render import Render
from nearfar.worlds.say import DETAILS, KINDS, Captions, Say
from nearfar.worlds.scene import RELATIONS, Scene, Thing
from nearfar.worlds.scenes import Scenes
from nearfar.worlds.source import SceneSource
from nearfar.worlds.style import PALETTES, WEATHER, Style
from nearfar.worlds.tables import spread_pairs

__all__ = [
    "COLOURS",
    "DETAILS",
    "DIRECTIONS",
    "EDITS",
    "KINDS",
    "PALETTES",
    "PLACES",
    "QUESTIONS",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "TEXTURES",
    "WEATHER",
    "Agreement",
    "Captions",
    "Change",
    "Edited",
    "Factors",
    "Joint",
    "Motion",
    "Noun",
    "Questions",
    "Render",
    "Say",
    "Scene",
    "SceneSource",
    "Scenes",
    "Style",
    "Thing",
    "agreement",
    "answer",
    "compose",
    "read",
    "rules",
    "spread_pairs",
]
