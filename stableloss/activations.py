"""Activations for prediction time, from the kernels of the losses."""

from typing import Any

from stableloss._dispatch import implemented_by, kernels

__all__ = ["log_sigmoid", "log_softmax", "logsumexp", "sigmoid", "softmax"]


@implemented_by(kernels.sigmoid)
def sigmoid(x: Any, out: Any = None) -> Any:
    """Logistic sigmoid 1 / (1 + exp(-x)), element by element.

    Parameters
    ----------
    x : array_like
        Real numbers of any shape, which must not change during the call. float32 is computed as float32,
        float16 and bfloat16 likewise and rounded once, all else as float64.
    out : ndarray, optional
        Array of the result's shape and dtype to write to; ``out=x`` works in place.

    Returns
    -------
    ndarray
        Of the shape of `x`; 0 at -inf, 1 at +inf, NaN at NaN.

    Raises
    ------
    TypeError
        If `x` does not hold real numbers or is a masked array, or `out` is not an array of the result's
        dtype.
    ValueError
        If `out` has another shape or is read-only.

    Notes
    -----
    Accuracy: largest error found for finite numbers, in ulps of the exact value; in parentheses the
    bound that the tests hold. Results below the smallest normal number may be 0. float32: of all
    2**32 numbers.

    =======  ========
    dtype    error
    =======  ========
    float32  2.49 (3)
    float64  2.43 (3)
    =======  ========

    See Also
    --------
    log_sigmoid : its logarithm, exact where the sigmoid rounds to 0 or 1.

    Examples
    --------
    >>> import stableloss as sl
    >>> sl.sigmoid([-100.0, 0.0, 100.0])
    array([3.72007598e-44, 5.00000000e-01, 1.00000000e+00])
    """


@implemented_by(kernels.log_sigmoid)
def log_sigmoid(x: Any, out: Any = None) -> Any:
    """Logarithm of the logistic sigmoid, -log(1 + exp(-x)), element by element.

    Parameters
    ----------
    x : array_like
        Real numbers of any shape, which must not change during the call. float32 is computed as float32,
        float16 and bfloat16 likewise and rounded once, all else as float64.
    out : ndarray, optional
        Array of the result's shape and dtype to write to; ``out=x`` works in place.

    Returns
    -------
    ndarray
        Of the shape of `x`; -inf at -inf, 0 at +inf, NaN at NaN.

    Raises
    ------
    TypeError
        If `x` does not hold real numbers or is a masked array, or `out` is not an array of the result's
        dtype.
    ValueError
        If `out` has another shape or is read-only.

    Notes
    -----
    Computed as min(x, 0) - log1p(exp(-abs(x))): relatively accurate near 0 too.

    Accuracy: largest error found for finite numbers, in ulps of the exact value; in parentheses the
    bound that the tests hold. Results below the smallest normal number may be 0. float32: of all
    2**32 numbers.

    =======  ========
    dtype    error
    =======  ========
    float32  1.84 (3)
    float64  1.56 (3)
    =======  ========

    Examples
    --------
    >>> import stableloss as sl
    >>> sl.log_sigmoid([-1000.0, 40.0])
    array([-1.00000000e+03, -4.24835426e-18])
    """


@implemented_by(kernels.softmax)
def softmax(x: Any, axis: int | tuple[int, ...] | None = -1, out: Any = None) -> Any:
    """Softmax exp(x_k) / sum_j exp(x_j) along one axis.

    Parameters
    ----------
    x : array_like
        Real numbers of any shape, which must not change during the call. float32 is computed as float32,
        float16 and bfloat16 likewise and rounded once, all else as float64.
    axis : int, tuple of int or None, default: -1
        The axis of the classes; several count as one, None stands for all.
    out : ndarray, optional
        Array of the result's shape and dtype to write to; ``out=x`` works in place.

    Returns
    -------
    ndarray
        Of the shape of `x`. Several +inf along the axis share the probability equally; a slice with
        NaN, or of nothing but -inf, is NaN.

    Raises
    ------
    TypeError
        If `x` does not hold real numbers or is a masked array, or `out` is not an array of the result's
        dtype.
    ValueError
        If `x` has no such axis or is empty along it, or `out` has another shape or is read-only.

    Notes
    -----
    Accuracy: largest error found for finite numbers, in ulps of the exact value; in parentheses the
    bound that the tests hold. Results below the smallest normal number may be 0.

    =======  ========
    dtype    error
    =======  ========
    float32  2.30 (3)
    float64  2.72 (3)
    =======  ========

    See Also
    --------
    log_softmax : its logarithm, exact where the softmax rounds to 0 or 1.

    Examples
    --------
    >>> import stableloss as sl
    >>> sl.softmax([[1000.0, 1000.0], [0.0, -float("inf")]])
    array([[0.5, 0.5],
           [1. , 0. ]])
    """


@implemented_by(kernels.log_softmax)
def log_softmax(x: Any, axis: int | tuple[int, ...] | None = -1, out: Any = None) -> Any:
    """Logarithm of the softmax along one axis.

    Parameters
    ----------
    x : array_like
        Real numbers of any shape, which must not change during the call. float32 is computed as float32,
        float16 and bfloat16 likewise and rounded once, all else as float64.
    axis : int, tuple of int or None, default: -1
        The axis of the classes; several count as one, None stands for all.
    out : ndarray, optional
        Array of the result's shape and dtype to write to; ``out=x`` works in place.

    Returns
    -------
    ndarray
        Of the shape of `x`; a slice with NaN, or of nothing but -inf, is NaN.

    Raises
    ------
    TypeError
        If `x` does not hold real numbers or is a masked array, or `out` is not an array of the result's
        dtype.
    ValueError
        If `x` has no such axis or is empty along it, or `out` has another shape or is read-only.

    Notes
    -----
    The entry of the largest logit is -log1p of the other exponentials' sum, so that it keeps its
    digits however close to 0 it is.

    Accuracy: largest error found for finite numbers, in ulps of the exact value; in parentheses the
    bound that the tests hold. Results below the smallest normal number may be 0.

    =======  ========
    dtype    error
    =======  ========
    float32  1.75 (3)
    float64  2.26 (3)
    =======  ========

    Examples
    --------
    >>> import stableloss as sl
    >>> sl.log_softmax([40.0, 0.0])
    array([-4.24835426e-18, -4.00000000e+01])
    """


@implemented_by(kernels.logsumexp)
def logsumexp(
    x: Any, axis: int | tuple[int, ...] | None = -1, out: Any = None, keepdims: bool = False
) -> Any:
    """Logarithm of the sum of exponentials along one axis, without overflow.

    Parameters
    ----------
    x : array_like
        Real numbers of any shape, which must not change during the call. float32 is computed as float32,
        float16 and bfloat16 likewise and rounded once, all else as float64.
    axis : int, tuple of int or None, default: -1
        The axis, or axes, to sum over; None for all.
    out : ndarray, optional
        Array of the result's shape and dtype to write to.
    keepdims : bool, default: False
        Whether the result keeps these axes, of length 1, so that it broadcasts against `x`.

    Returns
    -------
    ndarray or scalar
        -inf for a slice of nothing but -inf, +inf for one with a +inf, NaN for one with NaN.

    Raises
    ------
    TypeError
        If `x` does not hold real numbers or is a masked array, or `out` is not an array of the result's
        dtype.
    ValueError
        If `x` has no such axis or is empty along it, or `out` has another shape or is read-only.

    Notes
    -----
    Accuracy: largest error found for finite numbers, in ulps of the exact value or, where that is a
    difference of the largest number and a logarithm, of the larger of the two; in parentheses the
    bound that the tests hold. Results below the smallest normal number may be 0.

    =======  ========
    dtype    error
    =======  ========
    float32  1.36 (3)
    float64  2.13 (3)
    =======  ========

    Examples
    --------
    >>> import stableloss as sl
    >>> float(sl.logsumexp([1000.0, 1000.0]))
    1000.6931471805599
    """
