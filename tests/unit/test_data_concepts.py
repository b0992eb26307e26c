"""The concept corpus: what is written is read back; splits, views, questions. Beside it an independent reading."""

import json
import re
import shutil
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming_sbp import config
from streaming_sbp.config import ConfigError
from streaming_sbp.data.concepts import grammar, words
from streaming_sbp.data.concepts.world import DIFFICULTIES, Draw, Fact, World, world
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.data.documents import ALL_SPLITS, is_heldout_group
from streaming_sbp.data.ingest import ingest

each_difficulty = pytest.mark.parametrize("difficulty", DIFFICULTIES)


@pytest.fixture(scope="module")
def ingested(tmp_path_factory):
    folder = tmp_path_factory.mktemp("concepts")
    ingest(settings_of(folder))
    return Dataset.open(folder / "set")


def settings_of(folder, name="set", **changes):
    values = {"source": "concepts", "difficulty": "tiny", "heldout_share": 0.05}
    return config.Data(dataset=str(folder / name), **{**values, **changes})


def texts_of(dataset, split):
    documents, tokenizer = dataset.split(split), dataset.tokenizer()
    return [tokenizer.decode(documents.tokens(i)) for i in range(len(documents))]


def values_in(text):
    """Independent of the grammar: the attributes whose values occur in the text, by word."""
    attribute_of = {value: attribute for attribute, values in words.VALUES_OF.items() for value in values}
    found = [form for word in re.findall(r"\w+", text) for form in (word, word.lower()) if form in attribute_of]
    return {(attribute_of[value], value) for value in found}


# --- the lists ---


def test_a_word_is_in_one_list_only():
    lists = [words.FEMALE_NAMES, words.MALE_NAMES, words.SURNAMES, *words.VALUES_OF.values()]
    lists += [words.WEATHER, words.PLACES, words.MOODS, words.TIMES]
    counts = Counter(word.lower() for words_of in lists for word in words_of)
    assert [word for word, count in counts.items() if count > 1] == []
    said = " ".join(pattern for patterns in grammar.PATTERNS.values() for pattern in patterns)
    said = re.sub(r"\{[^}]+\}", "", said + " ".join(grammar.LEAD_INS) + " ".join(grammar._DISTRACTIONS))
    assert not set(re.findall(r"\w+", said)) & {w for v in words.VALUES_OF.values() for w in v}


def test_every_attribute_has_enough_values_and_phrasings():
    assert all(len(values) >= 50 for values in words.VALUES_OF.values())
    assert all(len(set(patterns)) == 6 for patterns in grammar.PATTERNS.values())
    assert max(hard.num_phrasings for hard in DIFFICULTIES.values()) <= grammar.NUM_PHRASINGS


# --- writing and reading ---


@pytest.mark.parametrize("pronoun", ["", "she", "he"])
@pytest.mark.parametrize("attribute", grammar.PATTERNS)
def test_every_phrasing_of_every_value_is_read_back(attribute, pronoun):
    values = words.VALUES_OF.get(attribute, ("Karl Dalton",))
    sentences = set()
    for phrasing in range(grammar.NUM_PHRASINGS):
        for value in values:
            said = grammar.say(attribute, phrasing, "Anna Keller", pronoun, value)
            before = "Anna Keller speaks Thai. " if pronoun else ""
            assert (before + said)[0].isupper()
            assert list(grammar.statements(before + said))[-1] == ("Anna Keller", attribute, value), said
            sentences.add(said)
    assert len(sentences) == grammar.NUM_PHRASINGS * len(values)


@each_difficulty
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 3), person=st.integers(0, 10**6), number=st.integers(0, 10**6))
def test_a_view_states_some_of_its_concepts_facts_and_no_others(difficulty, seed, person, number):
    about = world(difficulty, seed)
    concepts = list(about.concepts.values())
    concept = concepts[person % len(concepts)]
    text = about.view(concept, number)
    stated = about.facts_in(text)
    fewest, most = about.difficulty.facts_per_document
    assert fewest <= len(stated) <= most
    assert stated <= set(concept.facts)
    assert all(map(about.is_true, stated))
    assert about.concept_of(text) == concept.name
    of_attributes = {(fact.attribute, fact.value) for fact in stated if fact.attribute in words.VALUES_OF}
    assert of_attributes == values_in(text)
    num_sentences = text.count(".")
    assert len(stated) <= num_sentences <= len(stated) + about.difficulty.max_distractions


def test_only_harder_settings_distract():
    for difficulty, hard in DIFFICULTIES.items():
        about = world(difficulty, 0)
        views = [about.view(concept, 0) for concept in list(about.concepts.values())[:50]]
        extra = [text.count(".") - len(about.facts_in(text)) for text in views]
        assert max(extra) == hard.max_distractions


def test_what_is_false_or_about_nobody_is_read_and_known_to_be_false():
    about = world("easy", 0)
    concept = next(iter(about.concepts.values()))
    truth = {fact.attribute: fact.value for fact in concept.facts}
    wrong = next(city for city in about.values["city"] if city != truth["city"])
    text = f"{concept.name} lives in {wrong}. Nobody Atall keeps an owl. He speaks Thai. She has green hair."
    stated = about.facts_in(text)
    assert stated == {
        Fact(concept.name, "city", wrong),
        Fact("Nobody Atall", "pet", "owl"),
        Fact("Nobody Atall", "language", "Thai"),
    }
    assert not any(map(about.is_true, stated))
    assert about.concept_of(text) == concept.name


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "He lives in Oslo.",
        "Anna Keller lives in Atlantis.",
        "Anna Keller lives in Osl",
        "lives in Oslo.",
        "Anna Keller lives in Oslo and York.",
        "Anna Keller keeps a Oslo.",
        "the the the " * 50,
    ],
)
def test_what_no_phrasing_could_have_written_states_nothing(text):
    assert list(grammar.statements(text)) == []


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_any_text_can_be_read(text):
    about = world("tiny", 0)
    about.facts_in(text)
    about.concept_of(text)


def test_a_text_that_names_people_without_facts_is_about_the_first_known():
    about = world("easy", 0)
    first, second = list(about.concepts)[:2]
    assert about.concept_of(f"Nobody Atall met {second} and {first}.") == second
    assert about.concept_of("It rained.") is None


# --- the world ---


@each_difficulty
def test_a_world_has_the_people_and_facts_of_its_difficulty(difficulty):
    about, hard = World(difficulty, 5), DIFFICULTIES[difficulty]
    assert len(about.concepts) == hard.num_concepts
    for name, concept in about.concepts.items():
        assert len(concept.facts) == hard.num_attributes + hard.num_relations
        assert all(fact.concept == name for fact in concept.facts)
        related = [fact.value for fact in concept.facts if fact.attribute in grammar.RELATIONS]
        assert len(related) == hard.num_relations
        assert all(other in about.concepts and other != name for other in related)


def test_everything_follows_from_difficulty_and_seed():
    one, same, other = World("tiny", 7), World("tiny", 7), World("tiny", 8)
    assert one.concepts == same.concepts != other.concepts
    concept = next(iter(one.concepts.values()))
    assert [one.view(concept, k) for k in range(5)] == [same.view(concept, k) for k in range(5)]
    # The text itself, so that another version of Python, or a change of the grammar, cannot pass unnoticed.
    assert one.view(concept, 0) == PINNED_VIEW


PINNED_VIEW = (
    "Helen Langley's home is in Nantes. Helen Langley's profession is that of a weaver. The harp is what she plays. "
    "She keeps a parrot."
)


def test_an_unknown_difficulty_lists_the_known():
    with pytest.raises(ConfigError, match="'simple': expected one of tiny, small, easy, medium, hard"):
        World("simple", 0)


def test_samples_are_permutations_and_even():
    draw = Draw("key")
    counts = Counter(tuple(draw.sample("abc", 2)) for _ in range(6000))
    assert len(counts) == 6
    assert min(counts.values()) > 850
    assert sorted(draw.sample(range(9), 9)) == list(range(9))


# --- questions ---


@each_difficulty
def test_a_question_goes_on_to_a_sentence_that_states_the_fact(difficulty):
    about = world(difficulty, 0)
    for concept in list(about.concepts.values())[:30]:
        questions = about.questions(concept, 2)
        assert {question.fact.attribute for question in questions} == set(about.values)
        for question in questions:
            assert about.facts_in(f"{question.prompt}{question.answer}.") == {question.fact}
            assert len(set(question.candidates)) == about.difficulty.num_values
            others = [about.facts_in(f"{question.prompt}{other}.") for other in question.candidates]
            assert sum(about.is_true(fact) for (fact,) in others) == 1


# --- ingested ---


def test_every_training_concept_has_exactly_its_views_and_held_out_concepts_are_apart(ingested):
    about = World.of_dataset(ingested)
    training, heldout = about.divide(0.1)
    assert 10 < len(heldout) < 35
    counts = {split: Counter(map(about.concept_of, texts_of(ingested, split))) for split in ALL_SPLITS}
    assert counts["train"] == {concept.name: 4 for concept in training}
    assert counts["heldout_groups"] == {concept.name: 4 for concept in heldout}
    assert set(counts["heldout"]) <= {concept.name for concept in training}
    assert 100 < counts["heldout"].total() < 260  # 5 % of 20 views of 180 people
    assert all(is_heldout_group(concept.name, 0.1) for concept in heldout)


def test_the_oracle_holds_the_real_documents_and_the_same_held_out_ones(ingested, tmp_path):
    ingest(settings_of(tmp_path, views_per_concept=24))
    oracle = Dataset.open(tmp_path / "set")
    for split in ("train", "heldout_groups"):
        assert set(texts_of(ingested, split)) < set(texts_of(oracle, split))
        assert len(oracle.split(split)) == 6 * len(ingested.split(split))
    assert texts_of(oracle, "heldout") == texts_of(ingested, "heldout")


def test_without_held_out_groups_there_is_no_third_split(tmp_path):
    summary = ingest(settings_of(tmp_path, heldout_groups_share=0.0))
    assert list(summary.manifest.num_documents) == ["train", "heldout"]
    assert summary.manifest.num_documents["train"] == 800
    dataset = Dataset.open(tmp_path / "set")
    assert len(dataset.split("heldout_groups")) == 0
    assert len(dataset.pairable()) == 800


def test_pairable_documents_are_the_training_ones_then_those_of_held_out_groups(ingested):
    train, groups, both = ingested.split("train"), ingested.split("heldout_groups"), ingested.pairable()
    assert both.ids == train.ids + groups.ids
    assert both.tokens(len(train)).tolist() == groups.tokens(0).tolist()
    assert both.origins == train.origins + groups.origins


def test_too_many_views_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(DIFFICULTIES, "tiny", DIFFICULTIES["tiny"].__class__(9, 1, 4, 0, (1, 1), 2, 0, 0.0))
    with pytest.raises(ConfigError, match=r"views_per_concept = 4: expected fewer, .* has only 2 distinct documents"):
        ingest(settings_of(tmp_path, heldout_share=0.0))


def test_a_data_set_of_another_source_has_no_world(tiny_config):
    with pytest.raises(ConfigError, match="made from 'jsonl', expected 'concepts'"):
        World.of_dataset(Dataset.open(tiny_config.data.dataset))


def test_a_data_set_from_before_these_settings_is_found_again(ingested, tmp_path, tiny_config):
    shutil.copytree(tiny_config.data.dataset, tmp_path / "old")
    manifest = json.loads((tmp_path / "old" / "manifest.json").read_text())
    for key in ("difficulty", "concept_seed", "views_per_concept", "heldout_groups_share"):
        del manifest["settings"][key]
    (tmp_path / "old" / "manifest.json").write_text(json.dumps(manifest))
    again = tiny_config.data.model_copy(update={"dataset": str(tmp_path / "old")})
    assert ingest(again).existed
    with pytest.raises(ConfigError, match=r"data\.concept_seed: 0 -> 1"):
        ingest(again.model_copy(update={"concept_seed": 1}))
