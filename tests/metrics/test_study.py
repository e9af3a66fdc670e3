"""The user study: blind, shuffled, resumed, saved whole; and averages whose answer is known."""
import csv
import itertools

import numpy as np
import pytest

from animkit.errors import AnimkitError
from animkit.metrics import RankingStudy, average_user_ranking, bootstrap, check_answers, load_answers, plan, ranked, save_answers, user_lead
from animkit.metrics import study
from animkit.metrics.study import ASPECTS, answered
from animkit.show.clip import Clip

METHODS = ("AnimateDiff", "Text2Video-Zero", "Tune-a-Video")
PROMPTS = ["a red ball", "a blue cat", "a <b>bold</b> car"]


def clips():
    def clip(k):
        return Clip(np.full((3, 16, 16, 3), 20 * k, np.uint8), prompt="told by Tune-a-Video", settings={"guidance": 12.5, "seed": 7})
    return {p: {m: clip(i * 3 + j) for j, m in enumerate(METHODS)} for i, p in enumerate(PROMPTS)}


def by(page, best_first):
    """The letters under which a page shows the methods, in this order."""
    return "".join(next(letter for letter, m in page.letters.items() if m == method) for method in best_first)


def answers(participant, best_first, prompts=PROMPTS):
    return [row for page in plan(prompts, METHODS, participant) for row in
            ranked(participant, page, dict.fromkeys(ASPECTS, by(page, best_first)))]


def test_a_plan_is_a_shuffle_that_comes_out_the_same_again():
    pages = plan(PROMPTS, METHODS, "p01")
    assert pages == plan(PROMPTS, METHODS, "p01") and sorted(p.prompt for p in pages) == sorted(PROMPTS)
    many = [page for k in range(200) for page in plan(PROMPTS, METHODS, f"p{k}")]
    counts = [sum(p.methods == order for p in many) for order in itertools.permutations(METHODS)]
    assert sum(counts) == 600 and min(counts) > 70, "every order about as often as another"
    assert plan(PROMPTS, METHODS, "p01", seed=1) != pages


def test_ranks_become_scores_as_in_the_paper(tmp_path):
    save_answers(tmp_path / "a.csv", answers("a", METHODS))
    found = average_user_ranking(tmp_path / "a.csv")
    assert {m: v["text"].value for m, v in found.items()} == {"AnimateDiff": 3, "Text2Video-Zero": 2, "Tune-a-Video": 1}
    assert found["AnimateDiff"]["smoothness"] == (3, 3, 3, 3)


def test_averages_over_files_and_their_intervals(tmp_path):
    people = [METHODS, METHODS, METHODS, METHODS[::-1]]
    paths = [save_answers(tmp_path / f"{k}.csv", answers(f"p{k}", order)) for k, order in enumerate(people)]
    found = average_user_ranking(paths)["AnimateDiff"]["domain"]
    assert found.value == pytest.approx((3 * 3 + 1) / 4) and found.n == 12
    # all a person's answers are alike, so the interval is that of four people, not of twelve rankings
    assert found.low == 1 and found.high == 3, "all four might be the one that differs"
    assert sum(v["domain"].value for v in average_user_ranking(paths).values()) == pytest.approx(6)


def test_a_lead_is_taken_ranking_by_ranking_over_the_best_rival(tmp_path):
    ours, zero, tuned = METHODS
    people = [(ours, zero, tuned)] * 3 + [(zero, ours, tuned)]
    paths = [save_answers(tmp_path / f"{k}.csv", answers(f"p{k}", order)) for k, order in enumerate(people)]
    ahead, rival = user_lead(paths, ours, [tuned, zero])
    assert rival == zero and ahead.n == 3 and ahead.value == pytest.approx((3 * 1 - 1) / 4)
    assert ahead.low == -1 and ahead.high == 1, "of four people all may be the one that differs, or none"
    assert user_lead(paths[:3], ours, [zero])[0] == (1, 1, 1, 3), "n counts people or prompts, of which three decide nothing"
    with pytest.raises(AnimkitError, match="asked was for AnimateDiff against Gen-2"):
        user_lead(paths, ours, ["Gen-2"])


def interval(scores, rounds, rng):
    return study._interval(study._mean(scores)[0], study._resampled(scores, rounds, rng)[:, 0], scores, 0.95)


@pytest.mark.parametrize("people, prompts, of_people, of_prompts", [(6, 12, 1, 0), (10, 4, 1, 0), (12, 12, 0, 1), (20, 6, 0.3, 1)])
def test_intervals_of_few_people_or_prompts_cover_as_they_say(people, prompts, of_people, of_prompts):
    """People differ, or prompts do, more than answers (0.5): true mean 0, covered 95 times of 100 or nearly. Prompts that each
    person drew anew would count for next to nothing."""
    covered, plain = 0, 0
    for k in range(200):
        rng = np.random.default_rng(k)
        scores = (of_people * rng.normal(size=(people, 1)) + of_prompts * rng.normal(size=prompts)
                  + rng.normal(0, 0.5, (people, prompts)))[..., None]
        found = interval(scores, 300, rng)
        covered += found.low <= 0 <= found.high
        means = rng.choice(scores[..., 0], (300, people)).mean((1, 2)) if of_people == 1 else [
            np.mean([rng.choice(scores[i, :, 0], prompts) for i in rng.integers(people, size=people)]) for _ in range(100)]
        plain += np.quantile(means, 0.025) <= 0 <= np.quantile(means, 0.975)
    assert covered >= 180 and plain < (150 if of_prompts else covered) and found.n == min(people, prompts)


@pytest.mark.parametrize("shape", [(1, 6, 1), (6, 1, 1)])
def test_the_interval_of_one_person_is_that_of_the_prompts_and_the_reverse(shape):
    found = interval(np.arange(6.0).reshape(shape), 4000, np.random.default_rng(0))
    assert found[:3] == pytest.approx(bootstrap(np.arange(6), rounds=4000)[:3], abs=0.2) and found.n == 1


def test_prompts_that_someone_did_not_rank_are_left_out():
    full = np.random.default_rng(0).normal(size=(8, 5, 2))
    some = full.copy()
    some[0, 1:] = np.nan
    assert study._mean(some) == pytest.approx(full[np.isfinite(some)].reshape(-1, 2).mean(0))
    drawn = study._resampled(some, 4000, np.random.default_rng(1))
    assert np.nanmean(drawn, 0) == pytest.approx(study._mean(some), abs=0.05)


def test_to_lead_is_to_lead_all_rivals(tmp_path):
    """One that all rank a little lower, another on which they do not agree: its mean is lower still, and it may be ahead."""
    ours, zero, tuned = METHODS
    orders = [(ours, zero, tuned)] * 8 + [(tuned, ours, zero)] * 4
    paths = [save_answers(tmp_path / f"{k}.csv", answers(f"p{k}", order)) for k, order in enumerate(orders)]
    alone, both = user_lead(paths, ours, [zero])[0], user_lead(paths, ours, [zero, tuned])[0]
    assert alone.low == 1 and both.low < 0.9 and both.value <= alone.value


def test_answers_about_something_else_cost_no_drawing(tmp_path):
    path = save_answers(tmp_path / "a.csv", answers("a", METHODS))
    check_answers(path, [*PROMPTS, "one that nobody ranked"], METHODS[::-1])
    with pytest.raises(AnimkitError, match="about 1 prompts that this run does not draw, such as"):
        check_answers([path], PROMPTS[1:], METHODS)
    with pytest.raises(AnimkitError, match="rank AnimateDiff, .*; this run wants AnimateDiff, Gen-2"):
        check_answers(path, PROMPTS, ["Gen-2", "AnimateDiff"])
    rows = [row for row in load_answers(path) if row["aspect"] != "domain"]
    with pytest.raises(AnimkitError, match="rank nothing by domain"):
        check_answers(save_answers(tmp_path / "b.csv", rows), PROMPTS, METHODS)


def test_a_page_wants_each_clip_once_for_each_aspect():
    page = plan(PROMPTS, METHODS, "a")[0]
    rows = ranked("a", page, {"text": "BAC", "domain": "ABC", "smoothness": "CBA"})
    assert [r["method"] for r in rows[:3]] == [page.letters[x] for x in "BAC"] and [r["rank"] for r in rows[:3]] == [1, 2, 3]
    with pytest.raises(AnimkitError, match="Rank every clip once by domain"):
        ranked("a", page, {"text": "BAC", "domain": None, "smoothness": "CBA"})
    with pytest.raises(AnimkitError, match="is ranked by"):
        ranked("a", page, {"text": "BAC"})


def test_the_widget_is_blind_saves_each_page_and_resumes(tmp_path):
    path = tmp_path / "answers" / "p01.csv"
    study = RankingStudy(clips(), path, "p01")
    assert not any(m in study.shown.value for m in METHODS) and "guidance" not in study.shown.value
    assert study.shown.value.count("<video") == 3 and "Page 1 of 3" in study.shown.value
    import base64
    import re
    films = [base64.b64decode(data) for data in re.findall(r"base64,([^\"]+)", study.shown.value)]
    assert len(films) == 3 and not any(b"Tune" in film or b"guidance" in film for film in films), "nor inside the files"
    study.next.click()
    assert 'role="alert"' in study.said.value and not path.exists(), "nothing chosen, nothing saved"
    first = study.page
    for chooser in study.orders.values():
        chooser.value = by(first, METHODS)
    study.next.click()
    assert study.page != first and len(load_answers(path)) == 9 and study.orders["text"].value is None
    again = RankingStudy(clips(), path, "p01")
    assert again.page == study.page and "Page 2 of 3" in again.shown.value
    while again.page:
        for chooser in again.orders.values():
            chooser.value = by(again.page, METHODS)
        again.next.click()
    assert "All 3 pages" in again.shown.value and again.form.layout.display == "none"
    assert average_user_ranking(path)["AnimateDiff"]["text"].value == 3
    assert answered(load_answers(path), "p01") == set(PROMPTS) and not answered(load_answers(path)[:6], "p01")
    assert "<b>bold" not in "".join(RankingStudy(clips(), tmp_path / f"{k}", f"{k}").shown.value for k in range(4))


def test_another_participants_answers_in_the_same_file_are_kept(tmp_path):
    path = save_answers(tmp_path / "all.csv", answers("other", METHODS))
    study = RankingStudy(clips(), path, "me", references={p: np.zeros((2, 16, 16, 3), np.uint8) for p in PROMPTS})
    assert "Reference pictures" in study.shown.value and len(study.pages) == 3
    for chooser in study.orders.values():
        chooser.value = "CBA"
    study.next.click()
    assert len(load_answers(path)) == 27 + 9


def test_two_who_answer_into_one_file_at_a_time_are_both_kept(tmp_path):
    one, two = (RankingStudy(clips(), tmp_path / "all.csv", name) for name in ("p01", "p02"))
    for study_ in (one, two, one):
        for chooser in study_.orders.values():
            chooser.value = "ABC"
        study_.next.click()
    found = load_answers(tmp_path / "all.csv")
    assert {name: len(answered(found, name)) for name in ("p01", "p02")} == {"p01": 2, "p02": 1}
    stale = RankingStudy(clips(), tmp_path / "all.csv", "p02")
    for study_ in (two, stale):  # the same page, open twice: its last answer stands
        for chooser in study_.orders.values():
            chooser.value = "BCA"
        study_.next.click()
    assert len(load_answers(tmp_path / "all.csv")) == 4 * 9


def test_a_column_of_remarks_stays_when_the_study_goes_on(tmp_path):
    """A spreadsheet leaves such columns, and cells beyond the last."""
    rows = [row | {"remark": "hesitated"} for row in answers("other", METHODS)]
    path = write(tmp_path / "all.csv", rows)
    path.write_text(path.read_text().replace("hesitated", "hesitated,,"))
    study = RankingStudy(clips(), path, "me")
    for chooser in study.orders.values():
        chooser.value = "ABC"
    study.next.click()
    found = load_answers(path)
    assert len(found) == 27 + 9 and [row["remark"] for row in found] == ["hesitated"] * 27 + [""] * 9


def test_answers_about_other_methods_are_not_taken_for_these(tmp_path):
    two = [row for row in answers("me", METHODS) if row["rank"] < 3]  # as before a third method was added
    path = save_answers(tmp_path / "me.csv", two)
    with pytest.raises(AnimkitError, match="ranks AnimateDiff, Text2Video-Zero for me, these clips are of .*: give a new file"):
        RankingStudy(clips(), path, "me")
    assert RankingStudy(clips(), path, "another").page


def test_a_page_that_cannot_be_written_is_said_and_asked_again(tmp_path):
    (tmp_path / "file").write_text("in the way")
    study = RankingStudy(clips(), tmp_path / "p.csv", "p")
    study.path, page = tmp_path / "file" / "p.csv", study.page
    for chooser in study.orders.values():
        chooser.value = "ABC"
    study.next.click()
    assert "could not write" in study.said.value and study.page == page and study.orders["text"].value == "ABC"


def write(path, rows, columns=None):
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, columns or list(rows[0]), extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
    return path


@pytest.mark.parametrize("spoil, said", [
    (lambda rows: write("f.csv", rows, ["participant", "rank"]), "is no file of answers"),
    (lambda rows: write("f.csv", [{**rows[0], "rank": "best"}, *rows[1:]]), "f.csv, line 2: no answer"),
    (lambda rows: write("f.csv", [{**rows[0], "aspect": "colour"}, *rows[1:]]), "f.csv, line 2: no answer"),
    (lambda rows: write("f.csv", rows[1:]), "is not each of 1 to 2 once"),
    (lambda rows: write("f.csv", [{**rows[0], "rank": 2}, *rows[1:]]), "is not each of 1 to 3 once"),
    (lambda rows: open("f.csv", "wb").write(b"\xff\xfe\x00"), "could not be read")])
def test_files_that_hold_something_else_are_named(tmp_path, monkeypatch, spoil, said):
    monkeypatch.chdir(tmp_path)
    spoil(answers("a", METHODS))
    with pytest.raises(AnimkitError, match=said):
        load_answers("f.csv")


def test_sets_of_files_that_do_not_go_together(tmp_path):
    one = save_answers(tmp_path / "1.csv", answers("a", METHODS))
    with pytest.raises(AnimkitError, match="stands in both"):
        average_user_ranking([one, save_answers(tmp_path / "2.csv", answers("a", METHODS))])
    two = [r | {"method": "Gen-2" if r["method"] == METHODS[0] else r["method"]} for r in answers("b", METHODS)]
    with pytest.raises(AnimkitError, match="same methods throughout"):
        average_user_ranking([one, save_answers(tmp_path / "3.csv", two)])
    with pytest.raises(AnimkitError, match="There is no file"):
        average_user_ranking(tmp_path / "none.csv")
    with pytest.raises(AnimkitError, match="compare: nothing"):
        average_user_ranking([])


@pytest.mark.parametrize("prompts, methods, person", [(PROMPTS, ("a",), "p"), (PROMPTS, tuple("abcde"), "p"), (PROMPTS, ("a", "a"), "p"),
                                                      ([], METHODS, "p"), (["x", "x"], METHODS, "p"), (PROMPTS, METHODS, " ")])
def test_plans_that_make_no_study(prompts, methods, person):
    with pytest.raises(AnimkitError, match="2 to 4 different methods|prompts that differ"):
        plan(prompts, methods, person)


def test_prompts_with_other_methods_are_refused(tmp_path):
    uneven = clips()
    del uneven[PROMPTS[0]]["Tune-a-Video"]
    with pytest.raises(AnimkitError, match="clips of the same methods"):
        RankingStudy(uneven, tmp_path / "x.csv", "p")
