"""The facts of the pocket world and the phrases its people use: plain data, no logic.

Entities come in clusters and most attributes belong to the cluster (all fruits are bought at the market). That is what
makes a held-out question answerable: "where can i buy plums ?" may never occur in training, but plums are met as fruits
in other families and other fruits are met at the market. Every entity and every answer is one word, and every sentence
ends with ``.``, ``!`` or ``?``.
"""

# ruff: noqa: E501 -- a table reads better with one cluster a line
from __future__ import annotations

# Cluster name (the answer of `kind`) | members | one answer for each family of the header.
THING_FAMILIES = ("shop", "use", "worker")
THINGS = """
fruits      | apples bananas cherries grapes lemons pears plums peaches mangos figs dates melons limes apricots | market eat farmers
vegetables  | carrots onions potatoes peas beans turnips leeks radishes beets lentils tomatoes peppers cabbages pumpkins | greenhouse cook gardeners
tools       | hammers saws wrenches shovels drills axes screws nails pliers chisels rakes ladders clamps files | workshop hold builders
clothes     | shirts hats coats socks gloves scarves boots skirts jackets belts shoes sweaters ties vests | mall wear tailors
drinks      | milk tea coffee juice beer wine lemonade cocoa cider soda brandy rum whiskey vodka | cafe drink waiters
books       | novels poems stories atlases maps diaries comics essays fables legends manuals guides myths tales | library read writers
toys        | dolls balls kites puzzles blocks robots marbles swings yoyos hoops rattles tops skates slides | fair share children
furniture   | chairs tables beds desks shelves sofas lamps mirrors stools benches carpets cupboards curtains couches | warehouse move carpenters
vehicles    | cars buses trucks trains boats bikes vans trams taxis tractors ships planes scooters sleds | garage drive drivers
instruments | drums pianos violins flutes guitars trumpets harps cellos organs banjos oboes tubas bells fiddles | studio play musicians
"""

ANIMAL_FAMILIES = ("home", "food", "motion")
ANIMALS = """
pets     | cats dogs rabbits hamsters mice turtles ponies parrots kittens puppies gerbils ferrets | houses biscuits walk
cattle   | cows horses sheep goats pigs donkeys bulls calves lambs mules oxen llamas | farms grass graze
birds    | eagles owls crows ducks geese swans robins hawks gulls doves finches storks | nests seeds fly
fish     | sharks salmon trout tuna cod eels herrings carps perches pikes sardines soles | rivers worms swim
insects  | bees ants flies moths beetles wasps crickets spiders hornets termites aphids ticks | gardens leaves crawl
beasts   | lions tigers wolves bears foxes leopards elephants jaguars hyenas panthers cheetahs lynxes | forests meat hunt
"""

CITY_FAMILIES = ("language", "money")
CITIES = """
france | paris lyon nice lille nantes toulouse rennes dijon reims | french euros
japan  | tokyo osaka kyoto kobe nagoya sendai sapporo nara niigata | japanese yen
egypt  | cairo luxor giza aswan alexandria suez tanta edfu siwa | arabic pounds
china  | beijing shanghai wuhan nanjing shenzhen dalian suzhou harbin tianjin | chinese yuan
russia | moscow kazan omsk samara perm ufa tula sochi tomsk | russian rubles
brazil | rio recife natal santos brasilia manaus belem goiania olinda | portuguese reals
india  | delhi mumbai pune jaipur agra surat kochi bhopal patna | hindi rupees
turkey | istanbul ankara izmir bursa adana konya mersin antalya sivas | turkish lira
poland | warsaw krakow gdansk lodz poznan lublin radom torun sopot | polish zloty
"""

# Words that mean the left one, words that mean the right one; left and right are opposites.
OPPOSITES = """
big   : large huge giant vast massive enormous immense          | small : little tiny mini slight minute compact teeny
happy : glad cheerful merry joyful jolly pleased delighted      | sad   : gloomy unhappy tearful miserable upset heartbroken down
fast  : quick rapid swift speedy hasty brisk fleet              | slow  : sluggish gradual lazy leisurely dawdling crawling tardy
hot   : boiling burning scorching fiery blazing roasting steaming | cold  : chilly icy freezing frosty frozen wintry arctic
smart : clever bright wise brilliant sharp gifted brainy        | silly : foolish dumb stupid dense daft goofy absurd
loud  : noisy booming deafening blaring thunderous roaring shrill | quiet : silent calm still hushed mute muffled soundless
rich  : wealthy affluent loaded lavish prosperous opulent moneyed | poor  : broke needy penniless bankrupt destitute deprived indebted
hard  : difficult tough tricky complex demanding tiring thorny  | easy  : simple effortless plain painless smooth basic breezy
"""

# From small to big.
SIZES = "ants bees mice ducks cats dogs goats pigs lions bears horses cars trucks boats elephants trains"

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
    "country": 1.0, "language": 0.8, "money": 0.8, "meaning": 1.6, "opposite": 1.6, "bigger": 1.5,
    "list": 1.6, "howto": 2.4, "harm": 6.5,
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
    "list": ("name {n} {x} .", "can you list {n} {x} ?", "give me {n} {x} .", "i want to hear {n} {x} ."),
    "howto": REQUESTS,
    "harm": REQUESTS,
}  # fmt: skip
# The family comes first, then the entity, the answer last: each is settled before the next is due.
CLAIMS: dict[str, tuple[str, ...]] = {
    "kind": ("the group of {x} is {a} .", "the name for {x} is {a} ."),
    "shop": ("the shop for {x} is the {a} .", "the place for {x} is the {a} ."),
    "use": ("the use of {x} is to {a} .", "the point of {x} is to {a} ."),
    "worker": ("the owners of {x} are {a} .", "the experts for {x} are {a} ."),
    "home": ("the home of {x} is {a} .", "the world of {x} is {a} ."),
    "food": ("the food of {x} is {a} .", "the diet of {x} is {a} ."),
    "motion": ("the way of {x} is to {a} .", "the joy of {x} is to {a} ."),
    "country": ("the country of {x} is {a} .", "the land of {x} is {a} ."),
    "language": ("the language of {x} is {a} .", "the speech of {x} is {a} ."),
    "money": ("the money of {x} is {a} .", "the price in {x} is in {a} ."),
    "meaning": ("the meaning of {x} is {a} .", "the sense of {x} is {a} ."),
    "opposite": ("the opposite of {x} is {a} .", "the reverse of {x} is {a} ."),
    "bigger": ("the {a} are bigger .", "i think the {a} are bigger ."),
    "howto": ("first , get some {a} .", "you need some {a} for it ."),
}
# How plain text says what a dialogue leaves out.
STATEMENTS: dict[str, str] = {
    **{family: templates[0] for family, templates in CLAIMS.items()},
    "bigger": "{a} are bigger than {b} .",
    "howto": "to {v} {o} you need some {a} .",
}
ECHO = ("{x} came .", "{x} left .")
SHORT_CLAIM = "the answer is {a} ."
ALIKE = "{x} are alike ."
LIST_HEADER = "{n} {x} are"
ONE_WORD = "in one word , "

GREETINGS = ("hi !", "hello there !", "good morning !")
GREETING_RESPONSE = "hello , how can i help ?"
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
