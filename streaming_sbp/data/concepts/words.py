"""The closed lists of the concept corpus. A word is in one list only, so a value says which attribute it is of."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FEMALE_NAMES = _words("""
    Anna Berta Clara Dora Edith Fiona Greta Helen Irene Julia Karin Laura Maria Nora Olga Paula Rosa Sonia
    Tilda Ursula Agnes Bianca Carla Diana Elena Flora Gisela Hanna Ingrid Judith
""")
MALE_NAMES = _words("""
    Adam Boris Conrad David Emil Felix Gustav Hugo Ivan Jonas Karl Leon Martin Nils Oscar Peter Rufus
    Simon Thomas Victor Albert Bruno Carlo Dennis Erik Frank Georg Henrik Isaac Jakob
""")
SURNAMES = _words("""
    Abbott Barlow Carver Dalton Ellison Farrow Gorman Hadley Irving Jarvis Keller Langley Merton Norris
    Osborne Prescott Quigley Ramsey Sutton Thorne Underhill Vaughan Walden Yardley Ashby Bishop Colby
    Draper Emerson Fleming Granger Holloway Ingram Jensen Kendall Lindgren Marlow Nolan Oakley Parrish
    Quentin Ridley Seaton Tolbert Upton Varga Whitby Yates Zeller Bellamy Corbin Dunmore Everett Finley
    Garrick Harlan Kimball Lockhart Mercer Renwick
""")
VALUES_OF = {
    "occupation": _words("""
        potter baker miller weaver tailor cobbler mason carpenter blacksmith glazier tanner saddler
        cooper farrier thatcher plumber printer bookbinder engraver painter sculptor jeweller
        clockmaker locksmith gardener florist beekeeper shepherd forester fisher sailor pilot
        navigator surveyor architect engineer chemist botanist geologist astronomer historian
        librarian archivist translator teacher lawyer notary judge dentist surgeon nurse midwife
    """),
    "city": _words("""
        Lisbon Porto Madrid Seville Valencia Toulouse Lyon Nantes Geneva Basel Zurich Vienna Salzburg
        Prague Brno Krakow Warsaw Gdansk Riga Tallinn Vilnius Helsinki Oslo Bergen Uppsala Aarhus
        Hamburg Bremen Leipzig Dresden Cologne Utrecht Antwerp Ghent Dublin Cork Galway Leeds York
        Bristol Naples Turin Verona Bologna Palermo Athens Patras Sofia Plovdiv Zagreb Izmir Ankara
    """),
    "instrument": _words("""
        violin viola cello harp lute lyre zither banjo guitar mandolin ukulele sitar piano organ
        harpsichord clavichord accordion concertina harmonica flute piccolo recorder oboe clarinet
        bassoon saxophone trumpet trombone tuba cornet bugle horn bagpipe ocarina kazoo drum timpani
        tambourine triangle cymbal gong xylophone marimba vibraphone glockenspiel celesta theremin
        dulcimer balalaika bouzouki didgeridoo fiddle
    """),
    "pet": _words("""
        falcon parrot canary pigeon goose duck hen peacock ostrich owl raven magpie cat terrier
        spaniel poodle beagle collie greyhound mastiff rabbit hamster gerbil hedgehog ferret otter
        goat sheep pig donkey mule pony horse camel llama alpaca cow buffalo reindeer tortoise turtle
        lizard gecko iguana python newt frog salamander goldfish carp tarantula stork
    """),
    "dish": _words("""
        paella risotto lasagne ravioli gnocchi polenta minestrone carbonara pizza calzone focaccia
        bruschetta moussaka souvlaki tzatziki hummus falafel tabbouleh couscous tagine goulash borscht
        pierogi bigos schnitzel strudel sauerkraut bratwurst spaetzle fondue raclette quiche
        ratatouille cassoulet bouillabaisse crepes croissants haggis porridge chowder jambalaya gumbo
        burritos tacos enchiladas ceviche curry biryani samosas ramen sushi tempura
    """),
    "language": _words("""
        Portuguese Spanish Catalan Basque Galician French Breton Occitan Italian Sardinian Romanian
        Latin Greek Albanian Turkish Arabic Hebrew Persian Kurdish Armenian Georgian Russian Ukrainian
        Polish Czech Slovak Hungarian Slovene Croatian Serbian Bulgarian German Dutch Frisian Danish
        Swedish Norwegian Icelandic Finnish Estonian Latvian Lithuanian Irish Welsh Hindi Bengali
        Tamil Nepali Thai Vietnamese Korean Japanese
    """),
    "collection": _words("""
        stamps coins shells fossils minerals medals maps globes atlases postcards posters etchings
        prints lithographs masks puppets dolls marbles buttons thimbles ribbons fans umbrellas hats
        gloves keys locks bells lamps candles lanterns mirrors teapots saucers spoons plates bottles
        corks matchboxes pipes pens inkwells typewriters cameras watches sundials compasses barometers
        telescopes microscopes magnets kites
    """),
    "pastime": _words("""
        fencing archery rowing sailing swimming diving surfing skiing skating sledding curling hockey
        football rugby cricket baseball basketball volleyball handball tennis badminton squash golf
        croquet bowling billiards darts chess draughts backgammon bridge poker juggling climbing
        hiking running cycling riding polo judo karate boxing wrestling sumo yoga gymnastics ballet
        dancing knitting embroidery origami calligraphy
    """),
}
WEATHER = _words("rain wind frost fog sunshine hail thunder snow drizzle mist")
PLACES = _words("valley harbour market meadow station bakery square quarry orchard chapel")
MOODS = _words("quiet busy cold bright dusty empty crowded calm grey muddy")
TIMES = _words("morning evening winter summer autumn spring weekend afternoon night season")
