"""A generated language of seven-word sentences with knowledge and form: one task changes the form, one the knowledge.

    register  name  question | verb  article  object  end

A fact gives a name and a question an object, at random. The verb follows from the question, the article from the
object. The words before the bar are the prompt; losses and scores are of the four words after it.

- The base corpus says its facts in three registers: plain, as above; polite, with verbs of its own; and inverted, where
  the verb comes after the object.
- *Style*: a prompt in the plain register, whatever it asks, gets a form that the base never saw: inverted, the verb
  polite, and closed by a particle. The knowledge stays. Scored on facts that the fine-tune did not show, since a form
  is a rule.
- *Facts*: new facts, of keys that the base never saw, in the plain form that it knows. Scored on these facts, since
  there is nothing else to infer them from.
"""

from dataclasses import dataclass

import numpy as np
import torch

NAMES, QUESTIONS, OBJECTS = 64, 64, 64
VERBS, ARTICLES = 8, 4
LENGTH, ANSWER = 7, 4

(NAME, QUESTION, OBJECT, VERB, POLITE_VERB, ARTICLE, PLAIN, POLITE, INVERTED, END, PARTICLE, VOCABULARY) = np.cumsum(
    [0, NAMES, QUESTIONS, OBJECTS, VERBS, VERBS, ARTICLES, 1, 1, 1, 1, 1]
).tolist()


@dataclass(frozen=True)
class Facts:
    """Keys, as numbers of name and question, and their objects: arrays (facts,)."""

    names: np.ndarray
    questions: np.ndarray
    objects: np.ndarray

    def __getitem__(self, part):
        return Facts(self.names[part], self.questions[part], self.objects[part])


def draw_facts(count, rng):
    """Return facts of distinct keys."""
    keys = rng.choice(NAMES * QUESTIONS, size=count, replace=False)
    return Facts(keys // QUESTIONS, keys % QUESTIONS, rng.integers(OBJECTS, size=count))


def plain(facts):
    """Return sentences in the form that the base has for plain prompts."""
    verb, article, noun = words(facts, VERB)
    return sentences(PLAIN, facts, verb, article, noun, END)


def polite(facts):
    """Return sentences in the second register of the base corpus."""
    verb, article, noun = words(facts, POLITE_VERB)
    return sentences(POLITE, facts, verb, article, noun, END)


def inverted(facts):
    """Return sentences in the third register of the base corpus."""
    verb, article, noun = words(facts, VERB)
    return sentences(INVERTED, facts, article, noun, verb, PARTICLE)


def styled(facts):
    """Return sentences in the form that the style task teaches for plain prompts."""
    verb, article, noun = words(facts, POLITE_VERB)
    return sentences(PLAIN, facts, article, noun, verb, PARTICLE)


def words(facts, verbs):
    """Return verb, article and object of each fact."""
    return verbs + facts.questions % VERBS, ARTICLE + facts.objects % ARTICLES, OBJECT + facts.objects


def sentences(register, facts, *answer):
    """Return the token numbers (facts, LENGTH) of prompts and answers."""
    prompt = (register, NAME + facts.names, QUESTION + facts.questions)
    return torch.from_numpy(np.stack(np.broadcast_arrays(*prompt, *answer), 1))
