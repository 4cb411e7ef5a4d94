"""A word is a list of numbers, and words that are used alike have lists that are alike."""

from __future__ import annotations

import numpy as np

from minigrad import Tensor, jit, linalg, nn
from minigrad.models.inspection import neighbours
from minigrad.models.lessons.page import Page, alone
from minigrad.models.lessons.shared import language_model, names, word_table
from minigrad.models.rotary import rotate, rotation

TITLE = "Words as vectors"
SECTIONS = ("Embedding",)
KINDS = {
    "animals": "cat dog horse cow sheep pig lion tiger bear wolf mouse bird fish snake frog",
    "colours": "red blue green yellow white black brown pink purple orange",
    "numbers": "one two three four five six seven eight nine ten hundred",
    "places": "Paris London Berlin Rome Madrid Tokyo France England Germany Italy Spain Japan",
    "people": "king queen man woman boy girl father mother son daughter brother sister prince",
    "doing": "run walk eat drink sleep write read speak think see hear jump swim",
}
SHARPNESS = 12.0  # of the shares that nearness is turned to: words have some ten neighbours
ASKED = ("cat", "blue", "seven", "France", "king")
GAMES = (
    ("king", "man", "woman", "queen"), ("Paris", "France", "Germany", "Berlin"),
    ("Rome", "Italy", "Japan", "Tokyo"), ("father", "man", "woman", "mother"),
    ("son", "boy", "girl", "daughter"), ("brother", "boy", "girl", "sister"),
)


def unit(rows: Tensor) -> Tensor:
    """The rows, each made 1 long: their products are the cosines of the angles between them."""
    return rows * rows.square().sum(1, keepdim=True).rsqrt()


def flat_map(cosines: Tensor, steps: int) -> Tensor:
    """Places in the plane, (words, 2), where words that are near by their cosines are near.

    Stochastic neighbour embedding (van der Maaten and Hinton, "Visualizing Data using t-SNE"),
    by gradient descent, from the two directions in which the words differ most.
    """
    count = len(cosines)
    itself = Tensor.eye(count).bool()
    wanted = (cosines * SHARPNESS).masked_fill(itself, float("-inf")).softmax(1)
    spread = cosines - cosines.mean(0)
    flat = (linalg.svd(spread)[0][:, :2] * 3).detach().requires_grad_(True)
    optimizer = nn.optim.Adam([flat], lr=0.1)

    @jit
    def step() -> Tensor:
        optimizer.zero_grad()
        apart = (flat.unsqueeze(1) - flat.unsqueeze(0)).square().sum(2)
        near = (-(apart + 1).log()).masked_fill(itself, float("-inf"))
        found = (near - near.reshape(-1).logsumexp(0)).masked_fill(itself, 0.0)
        loss = -(wanted / count * found).sum()
        loss.backward()
        optimizer.step()
        return loss.detach().realize()

    with Tensor.train():
        for _ in range(steps):
            step()
    return flat.detach()


def lesson(page: Page) -> None:
    """The lesson."""
    page.say("""
        A token's number means nothing. So the model's first layer is a table with a row for each
        token: a **vector**, a list of numbers, which training has found like all other parameters.
        From now on the word **is** its vector. This is the **embedding**.

        We look into SmolLM2, a real language model that is small enough for this page: 135 million
        parameters, 49,152 tokens, 576 numbers for each. (GPT-3 has 12,288 for each.)
    """)
    model, tokenizer = language_model()
    table = word_table()
    words = [word for kind in KINDS.values() for word in kind.split()]
    kinds = [number for number, kind in enumerate(KINDS.values()) for _ in kind.split()]
    ids = [tokenizer.encode(" " + word) for word in words]
    page.check("each of our words is one token", all(len(one) == 1 for one in ids),
               f"{len(words)} words")  # fmt: skip
    places = [one[0] for one in ids]
    page.check("the table has a row for each token", table.shape == (49_152, 576), str(table.shape))

    page.say("""
        Which words are alike? Take two vectors and look at the angle between them: the **cosine**
        is 1 if they point the same way, 0 if they have nothing to do with each other. These are the
        nearest of all 49,152 tokens. A dot is a space: “cat” inside a word and “·cat” are two
        tokens.
    """)
    near = dict(zip(words, neighbours(model, places), strict=True))
    page.table(["word", "nearest tokens, and their cosine"],
               [[word, ", ".join(f"{names([other])[0]} {cosine:.2f}"
                                 for other, cosine in near[word])] for word in ASKED])  # fmt: skip
    with Tensor.no_grad():
        directions = unit(table[Tensor(places)]).realize()
        cosines = directions.matmul(directions.transpose()).numpy()
    nearest = {word: words[int(np.argsort(-cosines[i])[1])] for i, word in enumerate(words)}
    page.check("for five of our words, the nearest other one is of the same kind",
               all(kinds[words.index(nearest[word])] == kinds[words.index(word)] for word in ASKED),
               ", ".join(f"{word}: {nearest[word]}" for word in ASKED))  # fmt: skip

    page.say("""
        Nobody can look at 576 dimensions. The map below squeezes them into two: gradient descent,
        which a later lesson explains, moved the words until similar ones were close. Nobody told
        the model what an animal is; words that are used in the same places of sentences ended up
        close together.

        There is a famous game: take the vector of king, subtract man, add woman, and you are said
        to arrive at queen. Play it, and see how much of the legend is true.
    """)
    with Tensor.no_grad():
        rows = {word: directions[place] for place, word in enumerate(words)}
        goals = rows["king"].stack(*(rows[game[0]] for game in GAMES[1:]))
        goals = unit(goals - Tensor.stack(*(rows[game[1]] for game in GAMES))
                     + Tensor.stack(*(rows[game[2]] for game in GAMES))).realize()  # fmt: skip
        scores = unit(table).matmul(goals.transpose()).numpy()
    flat = flat_map(Tensor(cosines), 300).numpy()
    found, right, honest = [], 0, 0
    for (a, b, c, wanted), column in zip(GAMES, scores.T, strict=True):
        order = np.argsort(-column)[:5].tolist()
        others = [i for i in order if i not in [places[words.index(w)] for w in (a, b, c)]]
        goal = places[words.index(wanted)]
        right, honest = right + (others[0] == goal), honest + (order[0] == goal)
        found.append([f"{a} − {b} + {c}", wanted, ", ".join(names(order))])
    page.table(["sum", "expected", "nearest of all 49,152 tokens"], found)
    page.check("the game works more often if the words of the sum are forbidden as answers",
               right >= honest, f"{right} of {len(GAMES)} with that rule, {honest} without"
               )  # fmt: skip

    page.say("""
        So directions do mean something, but less neatly than the story says. Try your own sums
        among the words of the map.
    """)
    example = cosines[words.index("cat")]
    inside = directions.matmul(goals[0]).numpy()
    page.widget("embedding", "Choose a word to see its neighbours; then calculate with words.",
                {"words": words, "kinds": kinds, "names": list(KINDS), "map": flat,
                 "vectors": directions,
                 "near": [[[names([i])[0], c] for i, c in near[word]] for word in words]},
                [({"word": "cat"}, example, 1e-5),
                 ({"sum": ["king", "man", "woman"]}, inside, 1e-4)])  # fmt: skip

    page.say("""
        A vector says which word it is, not **where** it stands, and “dog bites man” is not “man
        bites dog”. So each place in the text gets a signal of its own. GPT-3 **adds** a vector for
        the place, which it learned, to the vector of the word. SmolLM2 and most newer models
        **turn** pairs of numbers, by an angle that grows from place to place, fast for the first
        pairs and slowly for the last. The picture shows these turns as waves: the rows are places.
    """)
    cosine, sine = rotation(model.config, str(table.device))
    signal = cosine[:64, 0].numpy()
    page.widget("places", "Point at a place to see its signal: no two rows are the same.",
                {"signal": signal}, [({"place": 5}, signal[5], 1e-5)])  # fmt: skip
    with Tensor.no_grad():
        turned = rotate(Tensor.ones(1, 1, 64, model.config.width), cosine[:64], sine[:64])[0, 0]
        match = turned.matmul(turned.transpose()).numpy()
    apart = max(float(np.ptp(np.diagonal(match, by))) for by in range(60))
    page.check("how well two places match depends only on their distance", apart < 1e-3,
               f"at equal distances it differs by at most {apart:.1e}")  # fmt: skip
    page.chart("how well equal vectors match, by their distance", "places apart",
               "product of the two", {"match": list(enumerate(match[0]))})  # fmt: skip


if __name__ == "__main__":
    alone(lesson)
