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
        "rocket": ("rocket", "rocket", "spaceship", "space ship", "starship"),
        "boat": ("boat", "boat", "ship", "sailing boat", "sailboat"),
        "striped ball": ("striped ball", "striped ball", "stripy ball", "beach ball",
                         "ball with a stripe",
                         "ball with stripes", "ball with a black stripe"),
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
        "tiles": ("tiles", "tiled floor", "tile floor", "on tiles", "on a tile floor",
                  "gray tiles"),
        "wood": ("wood", "wooden floor", "planks", "on wooden planks", "on a wood floor"),
        "water": ("water", "sea", "ocean", "lake", "on the ocean", "on a lake", "on water"),
    },
    "sky": {
        "day": ("day", "daytime", "sunny", "daylight", "sunny day", "blue sky", "during the day"),
        "sunset": ("sunset", "dusk", "evening", "sunset sky", "at dusk", "orange sky", "sundown"),
        "night": ("night", "nighttime", "moonlight", "dark night", "at midnight", "by night"),
        "overcast": ("overcast", "cloudy", "clouds", "grey sky", "cloudy sky", "gray clouds",
                     "gray sky", "grey skies", "gray skies", "cloudy skies"),
    },
    "camera": {
        "static": ("still camera", "fixed camera", "camera still", "no camera movement", "static"),
        "pan left": ("pan left", "camera pans left", "panning left", "camera pan to the left"),
        "pan right": ("pan right", "camera pans right", "panning right", "camera pan to the right"),
        "push in": ("zooming in", "camera zooms in", "push in", "camera comes closer"),
        "pull back": ("zooming out", "camera zooms out", "pull back", "camera goes back"),
        "orbit left": ("orbit left", "camera orbits left", "camera circles left",
                       "camera moves around to the left", "the camera orbits left"),
        "orbit right": ("orbit right", "camera orbits right", "camera circles right",
                        "camera moves around to the right", "the camera orbits right"),
    },
}  # fmt: skip
NEAREST: dict[str, Words] = {  # words it does not hold, and what comes closest
    "kind": {
        "ball": ("balloon", "marble", "planet", "globe", "bubble", "pearl", "apple", "tomato",
                 "lemon", "melon", "pumpkin", "egg", "pebble", "football", "basketball", "earth",
                 "fruit", "coin", "wheel", "ring", "donut", "boulder", "rock",
                 "stone", "bead", "circle", "asteroid"),
        "cube": ("dice", "crate", "brick", "chest", "parcel", "package", "present", "gift",
                 "fridge", "television", "tv", "computer", "book", "suitcase", "bag", "cuboid",
                 "square", "cake", "table", "chair", "sofa", "bed", "phone", "clock",
                 "guitar", "piano"),
        "cylinder": ("barrel", "bottle", "cup", "mug", "glass", "pipe", "bucket", "candle",
                     "drum", "vase", "jar", "pillar", "column", "pole", "log", "stick", "lamp",
                     "pencil", "pot", "cigar", "banana", "spoon", "lighthouse", "battery"),
        "cone": ("pyramid", "tent", "mountain", "volcano", "hill", "triangle", "spike", "funnel",
                 "carrot", "hat", "teepee", "wigwam", "iceberg"),
        "car": ("truck", "bus", "train", "van", "taxi", "lorry", "jeep", "tractor", "motorcycle",
                "motorbike", "bike", "bicycle", "helicopter", "tank", "scooter", "wagon",
                "limousine", "ferrari", "porsche", "tesla", "suv", "cab", "sled", "skateboard"),
        "rocket": ("missile", "space shuttle", "spacecraft", "shuttle", "plane", "airplane",
                   "aeroplane", "jet", "satellite", "ufo"),
        "boat": ("yacht", "ferry", "canoe", "kayak", "raft", "submarine", "gondola", "sailor"),
        "striped ball": ("soccer ball", "tennis ball"),
        "tree": ("bush", "plant", "flower", "oak", "pine", "palm", "cactus", "shrub", "rose",
                 "forest", "birch", "willow", "mushroom", "leaf", "broccoli", "tulip"),
        "house": ("building", "castle", "hut", "cabin", "barn", "church", "tower", "skyscraper",
                  "mansion", "shed", "palace", "school", "shop", "garage", "temple", "villa",
                  "hotel", "factory", "city", "village", "windmill"),
        "snowman": ("man", "woman", "person", "boy", "girl", "child", "kid", "baby", "people",
                    "king", "queen", "princess", "prince", "wizard", "witch", "astronaut",
                    "soldier", "doctor", "dancer", "clown", "pirate", "knight", "ninja", "robot",
                    "doll", "toy", "monster", "alien", "ghost", "zombie", "dog", "corgi", "puppy",
                    "poodle", "cat", "kitten", "horse", "pony", "unicorn", "cow", "pig", "sheep",
                    "goat", "elephant", "lion", "tiger", "bear", "panda", "wolf", "fox", "rabbit",
                    "bunny", "mouse", "monkey", "gorilla", "giraffe", "zebra", "penguin", "duck",
                    "chicken", "bird", "eagle", "owl", "parrot", "fish", "shark", "whale",
                    "dolphin", "frog", "snake", "turtle", "dragon", "dinosaur", "animal", "actor",
                    "president", "teacher", "statue", "skeleton", "santa"),
    },
    "color": {"red": ("pink", "ruby", "maroon", "burgundy", "salmon", "cherry"),
              "orange": ("brown", "bronze", "copper", "peach", "tan", "amber", "apricot", "rusty"),
              "yellow": ("golden", "gold", "beige", "cream", "blond", "mustard"),
              "blue": ("black", "navy", "indigo", "cobalt", "azure", "sapphire"),
              "white": ("grey", "gray", "silver", "ivory", "transparent", "pale"),
              "purple": ("magenta", "lilac", "lavender", "mauve", "plum", "fuchsia"),
              "green": ("olive", "lime", "jade", "khaki"),
              "cyan": ("mint",)},
    "floor": {"grass": ("park", "garden", "pasture", "prairie", "moss", "turf", "golf course"),
              "snow": ("ice", "glacier", "arctic", "antarctica", "frost"),
              "tiles": ("street", "kitchen", "road", "pavement", "sidewalk", "bathroom",
                        "concrete", "plaza", "town square", "highway"),
              "water": ("river", "pond", "pool", "sea water", "waves", "harbour", "swamp"),
              "wood": ("parquet", "deck", "living room", "bedroom", "stage", "pier", "desk"),
              "sand": ("moon", "mars", "dunes", "dune", "sahara", "dust", "gravel", "shore",
                       "coast")},
    "sky": {"day": ("morning", "noon", "midday", "afternoon", "sunlight", "sunshine", "summer"),
            "sunset": ("dawn", "sunrise", "twilight", "golden hour"),
            "night": ("space", "dark", "darkness", "stars", "starry", "galaxy", "starlight"),
            "overcast": ("rain", "fog", "storm", "rainy", "foggy", "stormy", "mist", "misty",
                         "thunderstorm", "gloomy", "drizzle")},
    "motion": {"bounces": ("dancing", "leaping", "dances", "leaps", "dribbling"),
               "still": ("sleeping", "sitting", "waiting", "lying", "parked", "sleeps", "sits"),
               "spins": ("whirling", "swirling", "twisting", "whirls"),
               "falls": ("tumbling", "tumbles", "landing")},
    "event": {"behind": ("fence", "hedge", "barrier", "palisade")},
}  # fmt: skip
MANY = (  # more things than the world ever shows
    "four", "five", "six", "seven", "eight", "nine", "ten", "several", "many", "dozen",
    "dozens", "hundred", "hundreds", "thousand", "thousands", "million", "crowd", "4", "5",
)  # fmt: skip
DENIED: dict[str, Words] = {  # what stands behind "no", "not" or "without"
    "floor": {"grass": ("no grass", "not on the grass", "without grass", "not on grass"),
              "sand": ("no sand", "not on the beach", "without sand", "not on the sand"),
              "snow": ("no snow", "not on the snow", "without snow", "not in the snow"),
              "tiles": ("no tiles", "not on tiles", "without tiles", "not on the tiles"),
              "wood": ("no wood", "not on wood", "without wood", "not on a wooden floor"),
              "water": ("no water", "not on the water", "without water", "not on the sea")},
    "sky": {"day": ("not by day", "not in daylight", "not during the day", "not on a sunny day"),
            "sunset": ("no sunset", "not at sunset", "without a sunset", "not in the evening"),
            "night": ("not at night", "not by night", "no night", "not in the dark night"),
            "overcast": ("no clouds", "without clouds", "not cloudy", "without any clouds",
                         "no clouds in the sky", "no cloud", "not overcast")},
    "motion": {"left": ("not {go} left", "not going left", "not to the left"),
               "right": ("not {go} right", "not going right", "not to the right"),
               "toward": ("not coming closer", "not toward the camera"),
               "away": ("not {go} away", "not leaving"),
               "bounces": ("not bouncing", "no bouncing", "without bouncing", "it doesn't bounce",
                           "does not bounce", "without jumping"),
               "falls": ("not falling", "without falling", "it does not fall", "doesn't fall"),
               "spins": ("not spinning", "without spinning", "it does not spin", "no spinning")},
    "camera": {"static": ("without camera movement", "no camera motion", "no zoom", "no pan",
                          "without zoom", "the camera is not moving", "no panning", "no zooming")},
}  # fmt: skip
DOING: Words = {  # {go} as in MOTION_PHRASES
    "still": ("standing still", "not moving", "standing there", "motionless", "resting", "idle"),
    "left": ("{go} left", "{go} to the left", "{go} leftwards", "{go} from right to left",
             "right to left"),
    "right": ("{go} right", "{go} to the right", "{go} rightwards", "{go} from left to right",
              "left to right"),
    "toward": ("coming closer", "approaching", "{go} toward the camera", "{go} towards us",
               "{go} towards the viewer", "coming toward me", "coming at us", "{go} at the viewer",
               "coming towards the camera", "getting closer", "coming nearer"),
    "away": ("{go} away", "leaving", "{go} into the distance", "{go} away from the camera"),
    "bounces": ("bouncing", "bouncing", "jumping", "hopping", "bouncing up and down"),
    "falls": ("falling", "falling", "dropping", "falling down", "falling from the sky"),
    "spins": ("spinning", "spinning", "rotating", "turning around", "spinning around", "twirling"),
    "thrown left": ("thrown to the left", "being thrown left", "tossed to the left",
                    "flying to the left", "flying left in an arc", "thrown left"),
    "thrown right": ("thrown to the right", "being thrown right", "tossed to the right",
                     "flying to the right", "flying right in an arc", "thrown right"),
    "takes off": ("taking off", "taking off", "lifting off", "launching", "blasting off",
                  "flying up into the sky", "rising into the sky", "flying up", "being launched"),
}  # fmt: skip
DOES: Words = {
    "still": ("is still", "stays"), "left": ("goes left", "heads left"),
    "right": ("goes right", "heads right"),
    "toward": ("comes towards us", "gets closer", "comes at us"),
    "away": ("leaves", "goes away", "drives off"), "bounces": ("hops", "jumps", "bounce"),
    "falls": ("drops", "falls down", "fall"), "spins": ("turns", "twirls", "spin"),
    "thrown left": ("flies to the left", "is tossed left", "flies left", "is thrown left"),
    "thrown right": ("flies to the right", "is tossed right", "flies right", "is thrown right"),
    "takes off": ("blasts off", "is launched", "flies up", "rises into the sky", "launch",
                  "goes up into the sky", "shoots up into the sky"),
}  # fmt: skip
# What leaves open whether it is to the left or to the right.
THROWN = ("thrown", "being thrown", "flying through the air", "tossed", "thrown into the air",
          "flying in an arc", "flying")  # fmt: skip
ROUND = ("orbiting camera", "the camera orbits", "the camera circles around it", "orbit shot",
         "camera orbits around", "the camera goes around", "camera circles")  # fmt: skip
GOING = ("rolling", "driving", "sliding", "moving", "going", "travelling", "heading", "sailing")
GOES = ("rolls", "drives", "slides", "moves", "goes", "sails")
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
STRANGERS = ("shoe", "thing", "angel", "key", "letter", "engine", "cloak", "violin", "crown",
             "mirror", "ladder", "magnet", "spider", "wing", "machine", "shadow", "cheese", "pizza",
             "dream", "idea", "song", "love", "war", "music", "number", "smoke", "fire",
             "rope")  # fmt: skip
ASIDES = ("with a hat", "eating pizza", "like in a movie", "near paris", "reading a book",
          "in the style of van gogh", "with sunglasses", "and my uncle bob", "playing chess",
          "full of love", "in the year 2077", "so cool", "with lots of details", "in the middle",
          "on the left", "for my school project", "seen from above")  # fmt: skip
ACTS = ("floating", "swimming", "singing", "walking", "running",
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
    "seconds", "second", "frame", "frames", "long", "short", "fast", "quickly", "slowly", "color",
    "colour", "colored", "any", "all", "onto", "through", "across", "between", "around", "about",
    "only", "more", "most", "good", "great", "nothing", "something", "everything", "anything",
    "instead", "rather", "than", "except", "never", "happens", "shows", "showing", "along",
    "straight", "directly",
)  # fmt: skip
SIDES = (  # where a thing is, which is no motion
    "on the left", "on the right", "at the left", "at the right", "to the left of",
    "to the right of", "left of", "right of", "on the left side", "on the right side", "on left",
    "on right", "in the middle", "left one", "right one", "the left", "the right", "on the wall",
)  # fmt: skip
PLACES: dict[str, dict[str, str]] = {  # as the world's nearest behind "on", "in", "at" …
    "floor": {
        "table": "wood", "forest": "grass", "jungle": "grass", "woods": "grass", "hill": "grass",
        "farm": "grass", "mountain": "snow", "mountains": "snow", "city": "tiles", "town": "tiles",
        "school": "tiles", "shop": "tiles", "village": "grass", "castle": "tiles",
        "church": "tiles", "factory": "tiles", "house": "wood", "room": "wood", "island": "sand",
        "glass": "tiles", "planet": "sand", "earth": "grass", "garage": "tiles", "boat": "wood",
        "ship": "wood", "bed": "wood", "chair": "wood", "volcano": "sand", "office": "tiles",
    },
}  # fmt: skip
# Real words that differ by one slip from a word of the world: read as they are, never corrected.
LOOKALIKES = """
ape balls ban bar bard bat batter battle bay beard beat beats beech being bells below bench bing
bits bitter blake blank bleach blend blobs blocks blocky blood bluer blues boa boar boards boast
bond boot bounced bouncy bounding braid braids brawn breach bread bring broad brow brows bud bug
bums bus bust but buy bytes calls cam cameras cap carl cast caters chain chatters chess chill
circled circus clash clashing click clocks clods clone clones close closed closes closet cloud
clover coat codes coding collie combing come comet comets compute computed computes con coned cones
cop copes coping cores cost cot crane crown crush crushed crushes crust cub cubes cue cues curse
dam dance def derives deriving des deserts dessert dew dig dim dip diving dolls don dos dose doses
dot drawn dries dripping drive driven drivers drown due ear ears east eater eats eighth elf
exploration explore explores exploring eye failing falsely fan far farther fells fields fiend filed
files filling fin fired fix fixer fixes flees flied flips flood flour fog form fox fries fro fur
gal gap gary gay gem gets gin gloss gong grabs grant grasp grave gravy grays greed greek greens
greet grind had halls ham hat hay head heaps hearing heaving hem hen hid hints hip hires hives hoe
homer hop hoping horses hose hot houses hub hue hug hut ice ide int intro jam jar jet key kid kin
kitten lab lad lads lakes lan lander lap larger law layer leading leaking leaning leasing leave let
lie lies lifting lip listing lists lit loving lunch lunches mad mali map marsh mat meadows means
mediums met midnights min modes mom moose mop moping mouses mover mowing mud nap net nights nut oak
oceans oil oranges orbital pace pad pain pants paris parses pas paw pea pear pen pet pie pieced
pierce pig pin pinning pint pit plan plank plate plates played plays point pointed pointing points
polls pop ports posses pot pound prayer prayers preach price print printing prints pun pus racket
rackets rag raises raising ram ran rap rat raw resets resolves resolving rest rib rid rights rim
rip rob rocker rod roles rolf roll root rot rotate row rub rug rum rust sad sag saint sake san
sands sap sat says scatter scatters score sew shake shall share sharp she sheet shill shoe shutters
sick siding sin sinning sip sir sit size sizes skill skinning skins skips slash slashes slays sleep
slices slider slips smell snail snails snore snowmen snows sob soon sot sow spa spade spanning
spans spare spice spill spine spines spits spoke sport stabs stack stains stairs stake stall stalls
stamp stand star stare starlet start starts stash state statin statues status stay steep stems
stile stilt stock stole stones store story stove stray stream stride strided strides strip stripped
strive strokes subset sum sunsets sways swill tab tables tag tail tales talking taller tan tap
tapes tar tax tea tee tel ten thank thee theme themes these thorough though three thrones through
tie til tilde timed times tin tinny tip tired title toe ton tow toy track trades trail trait trawl
trees trial trials trunk tub tubes tuning tuns turn twirl van vat vehicles vet via viewed violent
violets wad wafer wager wail waiter walks wallet wallets walter watch wave web while whine width
wig winner wit wooded woods woody woolen write yak yam yellows zoo
"""
