"""Words that people use in prompts, beyond the wordings of captions.py.

A synonym means what the world holds; a nearest word does not, but says which thing comes closest.
A new thing in the world may get its row here; nothing breaks without one.
"""

from __future__ import annotations

PICTURE = "a picture. "  # asks for a caption of one frame: nothing moves, no camera
Words = dict[str, tuple[str, ...]]

SYNONYMS: dict[str, Words] = {  # words that mean what the world holds
    "kind": {
        "ball": ("ball", "ball", "sphere", "orb"), "cube": ("cube", "cube", "box", "block"),
        "cylinder": ("cylinder", "tube"), "cone": ("cone",), "tree": ("tree",),
        "car": ("car", "car", "automobile", "vehicle"), "snowman": ("snowman", "snow man"),
        "house": ("house", "house", "home", "cottage"),
    },
    "color": {
        "red": ("scarlet", "crimson", "reddish"), "cyan": ("turquoise", "aqua", "teal"),
        "purple": ("violet",), "yellow": ("yellowish",), "green": ("emerald",),
    },
    "size": {
        "small": ("small", "little", "tiny", "mini"), "medium": ("medium-sized", "medium"),
        "large": ("large", "big", "huge", "giant", "enormous"),
    },
    "floor": {
        "grass": ("grass", "lawn", "meadow", "in a field", "on the lawn", "in the grass"),
        "sand": ("sand", "beach", "desert", "on the beach", "in the desert", "sandy ground"),
        "snow": ("snow", "snowy ground", "on snow", "winter snow", "snowy"),
        "tiles": ("tiles", "tiled floor", "tile floor", "on tiles", "on a tile floor"),
        "wood": ("wood", "wooden floor", "planks", "on wooden planks", "on a wood floor"),
        "water": ("water", "sea", "ocean", "lake", "on the ocean", "on a lake", "on water"),
    },
    "sky": {
        "day": ("day", "daytime", "sunny", "daylight", "sunny day", "blue sky", "during the day"),
        "sunset": ("sunset", "dusk", "evening", "sunset sky", "at dusk", "orange sky", "sundown"),
        "night": ("night", "nighttime", "moonlight", "dark night", "at midnight", "by night"),
        "overcast": ("overcast", "cloudy", "clouds", "grey sky", "cloudy sky", "gray clouds"),
    },
    "camera": {
        "static": ("still camera", "fixed camera", "camera still", "no camera movement", "static"),
        "pan left": ("pan left", "camera pans left", "panning left", "camera pan to the left"),
        "pan right": ("pan right", "camera pans right", "panning right", "camera pan to the right"),
        "push in": ("zooming in", "camera zooms in", "push in", "camera comes closer"),
        "pull back": ("zooming out", "camera zooms out", "pull back", "camera goes back"),
    },
}  # fmt: skip
NEAREST: dict[str, Words] = {  # words it does not hold, and what comes closest
    "kind": {
        "ball": ("balloon", "marble", "planet"), "cube": ("dice", "crate", "brick"),
        "cylinder": ("barrel", "can", "bottle"), "cone": ("pyramid", "tent", "mountain"),
        "car": ("truck", "bus", "train"), "tree": ("bush", "plant", "flower"),
        "house": ("building", "castle", "hut"), "snowman": ("man", "woman", "person"),
    },
    "color": {"red": ("pink",), "orange": ("brown",), "yellow": ("golden", "gold"),
              "blue": ("black", "navy"), "white": ("grey", "silver"), "purple": ("magenta",),
              "green": ("olive",)},
    "floor": {"grass": ("park", "garden"), "snow": ("ice",), "tiles": ("street", "kitchen"),
              "water": ("river",), "wood": ("table",), "sand": ("moon",)},
    "sky": {"day": ("morning", "noon"), "sunset": ("dawn", "sunrise"), "night": ("space", "dark"),
            "overcast": ("rain", "fog", "storm")},
}  # fmt: skip
DOING: Words = {  # {go} as in MOTION_PHRASES
    "still": ("standing still", "not moving", "standing there", "motionless", "resting", "idle"),
    "left": ("{go} left", "{go} to the left", "{go} leftwards", "{go} from right to left"),
    "right": ("{go} right", "{go} to the right", "{go} rightwards", "{go} from left to right"),
    "toward": ("coming closer", "approaching", "{go} toward the camera", "{go} towards us",
               "{go} towards the viewer", "coming toward me"),
    "away": ("{go} away", "leaving", "{go} into the distance", "{go} away from the camera"),
    "bounces": ("bouncing", "bouncing", "jumping", "hopping", "bouncing up and down"),
    "falls": ("falling", "falling", "dropping", "falling down", "falling from the sky"),
    "spins": ("spinning", "spinning", "rotating", "turning around", "spinning around", "twirling"),
}  # fmt: skip
DOES: Words = {
    "still": ("is still", "stays"), "left": ("goes left", "heads left"),
    "right": ("goes right", "heads right"), "toward": ("comes towards us", "gets closer"),
    "away": ("leaves", "goes away", "drives off"), "bounces": ("hops", "jumps", "bounce"),
    "falls": ("drops", "falls down", "fall"), "spins": ("turns", "twirls", "spin"),
}  # fmt: skip
GOING = ("rolling", "driving", "sliding", "moving", "going", "travelling", "heading")
GOES = ("rolls", "drives", "slides", "moves", "goes")
SIDEWAYS = ("left", "right", "toward", "away")

BEFORE = (
    "please make a video of", "a video of", "video of", "make me a video where", "i want to see",
    "show me", "can you generate", "a clip of", "a short film of", "cinematic shot of", "create",
    "a 3d render of", "imagine", "generate a video with", "animation of", "there is", "make",
    "once upon a time", "could you please show", "a scene with", "a photo of", "just", "render",
    "hello! i would like", "the video shows", "close-up of", "an epic shot of",
)  # fmt: skip
AFTER = (
    ", 4k", ", cinematic", ", high quality", ", 8k, highly detailed", ", photorealistic", "!!!",
    " please", ", masterpiece", " for 3 seconds", ", very beautiful", ", best quality", " thanks",
    ", realistic", ", hd", ", 35mm film", ", unreal engine", ", slow motion", ", minimal", "...",
    " and it looks great",
)  # fmt: skip
ADJECTIVES = ("shiny", "beautiful", "old", "nice", "cute", "lovely", "funny", "round", "new",
              "plastic", "wet", "happy", "lonely", "colorful", "glowing", "magic")  # fmt: skip
STRANGERS = ("dog", "corgi", "cat", "horse", "elephant", "robot", "dragon", "bird", "fish",
             "king", "astronaut", "cup", "chair", "phone", "banana", "guitar", "boat", "rocket",
             "spoon", "wizard", "lion", "baby", "shoe", "clock", "star", "city", "thing",
             "whale")  # fmt: skip
ASIDES = ("with a hat", "eating pizza", "like in a movie", "near paris", "reading a book",
          "in the style of van gogh", "with sunglasses", "and my uncle bob", "playing chess",
          "full of love", "in the year 2077", "so cool", "with lots of details", "in the middle",
          "on the left", "for my school project", "seen from above")  # fmt: skip
ACTS = ("flying", "dancing", "swimming", "singing", "exploding", "walking", "running",
        "burning", "growing", "melting", "doing a backflip", "playing")  # fmt: skip
ORDINARY = (
    "a", "an", "the", "of", "and", "or", "but", "with", "without", "in", "on", "at", "by", "to",
    "from", "for", "is", "are", "be", "it", "its", "this", "that", "there", "here", "please",
    "make", "video", "clip", "film", "movie", "show", "me", "i", "we", "you", "my", "your", "our",
    "want", "would", "like", "can", "could", "see", "generate", "create", "render", "scene", "shot",
    "picture", "photo", "image", "animation", "some", "one", "two", "thing", "things", "very",
    "really", "just", "then", "while", "as", "into", "over", "under", "up", "down", "not", "no",
    "do", "does", "did", "which", "where", "when", "who", "what", "next", "beside", "near",
    "behind", "front", "other", "another", "also", "too", "so", "if", "has", "have", "was", "were",
    "will", "he", "she", "they", "his", "her", "their", "them", "cinematic", "realistic",
    "beautiful", "nice", "4k", "8k", "hd", "quality", "high", "detailed", "slow", "motion",
    "seconds", "second", "frame", "frames", "long", "short", "fast", "quickly", "slowly",
)  # fmt: skip
