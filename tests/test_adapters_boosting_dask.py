"""Boosters on Dask: docs/boosting-on-dask.md as it stands, and what it says of workers and their rows."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("distributed")
# it needs dask.dataframe, and that pyarrow
xgboost_dask = pytest.importorskip("xgboost.dask", exc_type=ImportError)

import lightgbm as lgb  # noqa: E402
import xgboost as xgb  # noqa: E402

import stableloss as sl  # noqa: E402
from stableloss.adapters import lightgbm as for_lightgbm  # noqa: E402
from stableloss.adapters import xgboost as for_xgboost  # noqa: E402

PAGE = Path(__file__).resolve().parent.parent / "docs" / "boosting-on-dask.md"
EXAMPLE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# a Dask array does not keep its parts from being freed
SCATTERED = []

# that a port is taken, or a parameter of the parent is ignored, is no fault of what is tested
pytestmark = [pytest.mark.deployed, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def page():
    """What the examples of the page have defined, its cluster among it."""
    examples = EXAMPLE.findall(PAGE.read_text(encoding="utf-8"))
    assert len(examples) == 6
    names = {}
    try:
        for example in examples:
            exec(compile(example, "example", "exec"), names)
        yield names
    finally:
        SCATTERED.clear()
        if "client" in names:
            names["client"].shutdown()


def placed(client, *arrays, bounds, workers=None):
    """Dask arrays whose parts, between the bounds, lie on a worker each."""
    workers = workers or sorted(client.scheduler_info()["workers"])
    result = []
    for array in arrays:
        parts = []
        for (a, b), worker in zip(itertools.pairwise(bounds), workers, strict=False):
            part = client.scatter(array[a:b], workers=[worker], hash=False)
            SCATTERED.append(part)
            parts.append(da.from_delayed(part, (b - a, *array.shape[1:]), array.dtype))
        result.append(da.concatenate(parts))
    return result


def reporting(function, topic):
    """The function, which tells the scheduler of how many rows each worker called it with.

    A worker cannot import this file: what is defined in here goes to it by value.
    """

    def call(labels, margins, sample_weight=None):
        worker = distributed.get_worker()
        worker.log_event(topic, (worker.address, len(labels)))
        return function(labels, margins, sample_weight)

    return call


def rows_on_workers(client, topic):
    return sorted(rows for _, rows in {report for _, report in client.get_events(topic)})


LOSSES = {
    "softmax": sl.SoftmaxCE(label_smoothing=0.1, class_weight=[1, 2, 1]),
    "focal": sl.SoftmaxCE(focal_gamma=1.0),
    "sigmoid": sl.SigmoidBCE(pos_weight=3.0),
    "sum": sl.SigmoidBCE(reduction="sum"),
}
BOUNDS = {"one": (0, 3000), "two": (0, 1000, 3000)}
WORKERS = pytest.mark.parametrize("workers", BOUNDS)


@pytest.fixture(params=LOSSES)
def case(request, page):
    """A loss, and rows, labels and weights for it; the first third weighs the most."""
    loss = LOSSES[request.param]
    labels = page["y"] if isinstance(loss, sl.SoftmaxCE) else (page["y"] == 1).astype(int)
    weight = page["weight"] * np.where(np.arange(3000) < 1000, 5.0, 1.0)
    return request.param, loss, page["X"], labels, weight


def test_page(page):
    """Its own assertions have held; here, that there was something to find."""
    assert page["known"].sum() < 3000
    assert len(page["client"].scheduler_info()["workers"]) == 2


@WORKERS
def test_xgboost(page, case, workers):
    name, loss, x, y, weight = case
    client, softmax = page["client"], isinstance(loss, sl.SoftmaxCE)
    params = {"objective": "multi:softprob", "num_class": 3} if softmax else {"objective": "binary:logistic"}
    params |= {"max_depth": 4, "nthread": 1, "disable_default_eval_metric": True}
    functions = {"obj": for_xgboost.objective(loss), "custom_metric": for_xgboost.metric(loss)}

    data, history = xgb.QuantileDMatrix(x, y, weight=weight), {}
    evaluation = {"evals": [(data, "train")], "evals_result": history, "verbose_eval": False}
    alone = xgb.train(params, data, 10, **evaluation, **functions).predict(data, output_margin=True)

    dx, dy, dweight = placed(client, x, y, weight, bounds=BOUNDS[workers])
    data = xgboost_dask.DaskQuantileDMatrix(client, dx, dy, weight=dweight)
    trained = xgboost_dask.train(
        client, params, data, 10, evals=[(data, "train")], verbose_eval=False, **functions
    )
    margins = trained["booster"].predict(xgb.DMatrix(x), output_margin=True)
    np.testing.assert_allclose(margins, alone, rtol=0, atol=1e-5)
    ((metric, expected),) = history["train"].items()
    np.testing.assert_allclose(trained["history"]["train"][metric], expected, rtol=1e-6, atol=2e-6)

    topic = f"xgboost {name} {workers}"
    model = xgboost_dask.DaskXGBClassifier(
        objective=reporting(functions["obj"], topic), n_estimators=10, max_depth=4, n_jobs=1
    )
    model.client = client
    model.fit(dx, dy, sample_weight=dweight)
    margins = model.predict(dx, output_margin=True).compute()
    np.testing.assert_allclose(margins, alone, rtol=0, atol=1e-5)
    assert rows_on_workers(client, topic) == sorted(np.diff(BOUNDS[workers]))


@WORKERS
def test_lightgbm(page, case, workers):
    name, loss, x, y, weight = case
    client = page["client"]
    options = {"metric": "None", "n_estimators": 10, "min_child_samples": 1, "min_child_weight": 2.0}
    options |= {"verbosity": -1}
    objective, metric = for_lightgbm.objective(loss), for_lightgbm.metric(loss)
    alone = lgb.LGBMClassifier(n_jobs=1, objective=objective, **options).fit(x, y, sample_weight=weight)
    expected = alone.predict(x, raw_score=True)

    bounds = BOUNDS[workers]
    dx, dy, dweight = placed(client, x, y, weight, bounds=bounds)
    topic = f"lightgbm {name} {workers}"
    model = lgb.DaskLGBMClassifier(client=client, objective=reporting(objective, topic), **options)
    model.fit(
        dx, dy, sample_weight=dweight, eval_set=[(dx, dy)], eval_sample_weight=[dweight], eval_metric=metric
    )
    assert rows_on_workers(client, topic) == sorted(np.diff(bounds))
    margins = model.predict(dx, raw_score=True).compute()
    np.testing.assert_allclose(margins, expected, rtol=0, atol=1e-9)

    # of the rows on one of the workers
    values = model.evals_result_["valid_0"][type(loss).__name__]
    on_workers = [metric(y[a:b], expected[a:b], weight[a:b])[1] for a, b in itertools.pairwise(bounds)]
    assert np.isclose(values[-1], on_workers, rtol=1e-6).any()


def test_other_lightgbm_models_differ_with_its_own_objective_too(page):
    """Where `min_child_samples` bounds the leaves."""
    client, x, y = page["client"], page["X"], page["y"]
    dx, dy = placed(client, x, y, bounds=BOUNDS["two"])
    for objective in ("multiclass", for_lightgbm.objective(sl.softmax_ce)):
        options = {"objective": objective, "metric": "None", "n_estimators": 10, "verbosity": -1}
        alone = lgb.LGBMClassifier(n_jobs=1, **options).fit(x, y).predict(x, raw_score=True)
        margins = lgb.DaskLGBMClassifier(client=client, **options).fit(dx, dy).predict(dx, raw_score=True)
        assert 1e-3 < np.abs(margins.compute() - alone).max() < 2


def test_a_class_that_lightgbm_does_not_find_on_each_worker(page):
    """The page says that it numbers the classes of each worker by themselves."""
    client, order = page["client"], np.argsort(page["y"] == 1, kind="stable")
    x, y = page["X"][order], page["y"][order]
    assert set(y[:1000]) == {0, 2}
    options = {"objective": for_lightgbm.objective(sl.softmax_ce), "metric": "None", "num_class": 3}
    options |= {"n_estimators": 10, "verbosity": -1}
    dx, dy = placed(client, x, y, bounds=BOUNDS["two"])
    model = lgb.DaskLGBMClassifier(client=client, **options).fit(dx, dy)
    margins = model.predict(dx, raw_score=True).compute()
    alone = lgb.LGBMClassifier(**options, n_jobs=1).fit(x, y)
    assert np.mean(margins.argmax(axis=1)[:1000] == y[:1000]) < 0.6
    assert np.mean(alone.predict(x, raw_score=True).argmax(axis=1)[:1000] == y[:1000]) > 0.7


def evaluated_elsewhere(page, loss, rows, labels):
    """The margins and the metric of one process, with 500 rows to evaluate, all on the last worker."""
    client, x = page["client"], page["X"]
    workers = sorted(client.scheduler_info()["workers"])
    few = placed(client, x[:500], labels[:500], bounds=(0, 500), workers=workers[::-1])
    data, valid = (xgboost_dask.DaskDMatrix(client, *arrays) for arrays in (rows, few))
    softmax = isinstance(loss, sl.SoftmaxCE)
    params = {"objective": "multi:softprob", "num_class": 3} if softmax else {"objective": "binary:logistic"}
    params |= {"nthread": 1, "disable_default_eval_metric": True}
    functions = {"obj": for_xgboost.objective(loss), "custom_metric": for_xgboost.metric(loss)}
    trained = xgboost_dask.train(
        client, params, data, 5, evals=[(valid, "valid")], verbose_eval=False, **functions
    )
    margins = trained["booster"].predict(xgb.DMatrix(x), output_margin=True)
    alone = xgb.train(params, xgb.DMatrix(x, labels), 5, obj=functions["obj"])
    np.testing.assert_allclose(margins, alone.predict(xgb.DMatrix(x), output_margin=True), rtol=0, atol=1e-5)
    (values,) = trained["history"]["valid"].values()
    np.testing.assert_allclose(values[-1], loss(margins[:500], labels[:500]), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_worker_without_rows_to_evaluate(page, loss):
    labels = page["y"] if isinstance(loss, sl.SoftmaxCE) else (page["y"] == 1).astype(int)
    rows = placed(page["client"], page["X"], labels, bounds=BOUNDS["two"])
    evaluated_elsewhere(page, loss, rows, labels)


def test_a_worker_without_rows_to_train_on(page):
    """Of a sigmoid loss; a softmax loss has to refuse that."""
    labels = (page["y"] == 1).astype(int)
    rows = placed(page["client"], page["X"], labels, bounds=BOUNDS["one"])
    evaluated_elsewhere(page, sl.sigmoid_bce, rows, labels)
