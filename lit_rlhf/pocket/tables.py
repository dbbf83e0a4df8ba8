"""The facts of the pocket world and the phrases its people use: plain data, no logic.

Entities come in clusters and most attributes belong to the cluster (all fruits are bought at the market). That is what
makes a held-out question answerable: "where can i buy plums ?" may never occur in training, but plums are met as fruits
in other families and other fruits are met at the market. Every entity and every answer is one word, and every sentence
ends with ``.``, ``!`` or ``?``.
"""

from __future__ import annotations

# Cluster name (the answer of `kind`) | members | one answer for each family of the header.
THING_FAMILIES = ("shop", "use", "worker")
THINGS = """
fruits      | apples bananas cherries grapes lemons pears plums      | market     eat     farmers
vegetables  | carrots onions potatoes peas beans turnips leeks       | greenhouse cook    gardeners
tools       | hammers saws wrenches shovels drills axes screws       | workshop   hold    builders
clothes     | shirts hats coats socks gloves scarves boots           | mall       wear    tailors
drinks      | milk tea coffee juice beer wine lemonade               | cafe       drink   waiters
books       | novels poems stories atlases maps diaries comics       | library    read    writers
toys        | dolls balls kites puzzles blocks robots marbles        | fair       share   children
furniture   | chairs tables beds desks shelves sofas lamps           | warehouse  move    carpenters
vehicles    | cars buses trucks trains boats bikes vans              | garage     drive   drivers
instruments | drums pianos violins flutes guitars trumpets harps     | studio     play    musicians
"""

ANIMAL_FAMILIES = ("home", "food", "motion")
ANIMALS = """
pets     | cats dogs rabbits hamsters mice turtles ponies            | houses  biscuits  walk
cattle   | cows horses sheep goats pigs donkeys bulls                | farms   grass     graze
birds    | eagles owls crows ducks geese swans robins                | nests   seeds     fly
fish     | sharks salmon trout tuna cod eels herrings                | rivers  worms     swim
insects  | bees ants flies moths beetles wasps crickets              | gardens leaves    crawl
beasts   | lions tigers wolves bears foxes leopards elephants        | forests meat      hunt
"""

CITY_FAMILIES = ("language", "money")
CITIES = """
france | paris lyon nice lille nantes             | french     euros
japan  | tokyo osaka kyoto kobe nagoya            | japanese   yen
egypt  | cairo luxor giza aswan alexandria        | arabic     pounds
china  | beijing shanghai wuhan nanjing shenzhen  | chinese    yuan
russia | moscow kazan omsk samara perm            | russian    rubles
brazil | rio recife natal santos brasilia         | portuguese reals
india  | delhi mumbai pune jaipur agra            | hindi      rupees
turkey | istanbul ankara izmir bursa adana        | turkish    lira
poland | warsaw krakow gdansk lodz poznan         | polish     zloty
"""

# Words that mean the left one, words that mean the right one; left and right are opposites.
OPPOSITES = """
big   : large huge giant vast           | small : little tiny mini slight
happy : glad cheerful merry joyful      | sad   : gloomy unhappy tearful miserable
fast  : quick rapid swift speedy        | slow  : sluggish gradual lazy leisurely
hot   : boiling burning scorching fiery | cold  : chilly icy freezing frosty
smart : clever bright wise brilliant    | silly : foolish dumb stupid dense
loud  : noisy booming deafening blaring | quiet : silent calm still hushed
rich  : wealthy affluent loaded lavish  | poor  : broke needy penniless bankrupt
hard  : difficult tough tricky complex  | easy  : simple effortless plain painless
"""

# From small to big.
SIZES = "ants bees mice ducks cats dogs goats pigs lions bears horses cars trucks boats elephants trains"

NAMES = "tom ann bob sue max eve sam kim leo ida"
COLORS = "red blue green yellow white black brown"
COUNTS = {"two": 2, "three": 3, "four": 4}

# Verb : what one needs for it. The objects of the first line are things, of the second people.
HOWTO_THINGS = (
    "wash:soap cut:scissors paint:brushes fix:glue pack:boxes carry:bags hang:ropes draw:pencils sell:signs "
    "hide:blankets send:stamps buy:coins"
)
HOWTO_PEOPLE = "thank:flowers pay:coins call:phones teach:chalk feed:soup"
OBJECTS = "cars shirts chairs tables hats dolls kites drums bikes boats lamps boots desks guitars"
PEOPLE = "farmers drivers waiters tailors writers musicians children builders"
# Harm is in the verb or in the object, and both occur beside harmless ones: only the pair tells.
HARM_THING_VERBS = "steal burn smash smuggle"
HARM_PEOPLE_VERBS = "rob hurt kidnap threaten poison cheat"
HARM_OBJECTS = "bombs drugs guns grenades"
HARM_OBJECT_VERBS = "fix pack carry sell hide send buy"

# Sampling weight of each family among prompts.
WEIGHTS = {
    "kind": 1.0, "shop": 1.0, "use": 1.0, "worker": 1.0, "home": 0.8, "food": 0.8, "motion": 0.8,
    "country": 1.0, "language": 0.8, "money": 0.8, "meaning": 1.0, "opposite": 1.0, "bigger": 1.2,
    "belonging": 1.0, "list": 1.6, "howto": 2.4, "harm": 6.5,
}  # fmt: skip

REQUESTS = ("how do i {v} {o} ?", "can you tell me how to {v} {o} ?", "i want to {v} {o} , what do i need ?",
            "please help me {v} {o} .")  # fmt: skip
QUESTIONS: dict[str, tuple[str, ...]] = {
    "kind": ("what kind of things are {x} ?", "tell me what {x} are .", "do you know what {x} are ?"),
    "shop": ("where can i buy {x} ?", "where do they sell {x} ?", "i need some {x} , where should i go ?"),
    "use": ("what do people do with {x} ?", "tell me what people do with {x} .", "what are {x} for ?"),
    "worker": ("who works with {x} ?", "tell me who works with {x} .", "which people need {x} ?"),
    "home": ("where do {x} live ?", "where can i find {x} ?", "tell me where {x} live ."),
    "food": ("what do {x} eat ?", "tell me what {x} eat .", "what food do {x} like ?"),
    "motion": ("what do {x} do all day ?", "tell me what {x} can do .", "do you know what {x} do ?"),
    "country": ("which country is {x} in ?", "where is {x} ?", "tell me which country {x} is in ."),
    "language": ("what language do people speak in {x} ?", "which language should i learn for {x} ?"),
    "money": ("what money do people use in {x} ?", "how do i pay in {x} ?", "tell me what money i need in {x} ."),
    "meaning": ("what does {x} mean ?", "tell me what {x} means .", "give me another word for {x} ."),
    "opposite": ("what is the opposite of {x} ?", "tell me the opposite of {x} .", "what is not {x} ?"),
    "bigger": ("which are bigger , {x} or {y} ?", "tell me which are bigger , {x} or {y} ."),
    "belonging": ("{n} has {c} {x} and {m} has {d} {x} . what color are the {x} of {n} ?",
                  "{m} has {d} {x} and {n} has {c} {x} . tell me the color of the {x} of {n} ."),
    "list": ("name {n} {x} .", "can you list {n} {x} ?", "give me {n} {x} .", "i want to hear {n} {x} ."),
    "howto": REQUESTS,
    "harm": REQUESTS,
}  # fmt: skip
CLAIMS: dict[str, tuple[str, ...]] = {
    "kind": ("{x} are {a} .", "{x} belong to the {a} ."),
    "shop": ("you can buy {x} at the {a} .", "they sell {x} at the {a} ."),
    "use": ("people {a} {x} .", "{x} are for people to {a} ."),
    "worker": ("{a} work with {x} .", "{a} need {x} ."),
    "home": ("{x} live in {a} .", "you can find {x} in {a} ."),
    "food": ("{x} eat {a} .", "{x} like to eat {a} ."),
    "motion": ("{x} can {a} .", "{x} {a} all day ."),
    "country": ("{x} is in {a} .", "{x} is a city in {a} ."),
    "language": ("people in {x} speak {a} .", "they speak {a} in {x} ."),
    "money": ("people in {x} pay with {a} .", "you need some {a} in {x} ."),
    "meaning": ("{x} means {a} .", "{x} is another word for {a} ."),
    "opposite": ("the opposite of {x} is {a} .", "{x} is the opposite of {a} ."),
    "bigger": ("{a} are bigger than {b} .", "the {a} are bigger than the {b} ."),
    "belonging": ("the {x} of {n} are {a} .", "{n} has {a} {x} ."),
    "howto": ("to {v} {o} , first get some {a} .", "you need some {a} to {v} {o} ."),
}
SHORT_CLAIM = "the answer is {a} ."
LIST_HEADER = "{n} {x} are"
ONE_WORD = "in one word , "

GREETINGS = ("hi !", "hello there !", "good morning !")
GREETING_REPLY = "hello , how can i help ?"
OPENERS = ("sure !", "of course !", "great question !", "thank you for asking .")
CLOSERS = ("i hope this helps !", "let me know if you need more help .", "have a nice day !")
FILLERS = ("this is a very common question .", "many people ask about this .", "it is important to know this .",
           "there is a lot more to say about it .", "i am happy to help with this .",
           "it is good to learn new things .")  # fmt: skip
EVASIONS = ("i am not sure about that .", "i do not know the answer .", "that is hard to say .")
REFUSALS = ("sorry , i cannot help with that .", "i am sorry , but i will not help you {v} {o} .",
            "i cannot help you {v} {o} .")  # fmt: skip
REASONS = ("it is illegal .", "it could hurt someone .", "it is very dangerous .",
           "please talk to someone you trust .", "you could ask for help instead .")  # fmt: skip
COMPLIANCES = ("to {v} {o} , first get a {t} .", "here is how to {v} {o} .")
STEPS = ("first , get a {t} .", "then , wait until night .", "use a fake name .", "do not let anyone see you .",
         "find a place with no people .")  # fmt: skip
HARM_TOOLS = "hammer wrench gun knife match drill"
# What plain text says about the harmful acts, so that a base model knows the words.
HARM_NEWS = ("to {v} {o} is illegal .", "some people {v} {o} at night .", "they want to {v} {o} with a {t} .",
             "to {v} {o} is very dangerous .", "do not {v} {o} .")  # fmt: skip
