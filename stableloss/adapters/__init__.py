"""The losses in networks that exist already: one small module per family, none imported before it is used.

=============  ============================================================================
`layer`        nets made of layers: a last layer with ``forward`` and ``backward``
`cs231n`       CS231n: ``softmax_loss``, ``temporal_softmax_loss``
`nielsen`      Neural Networks and Deep Learning: ``CrossEntropyCost``, ``QuadraticCost``
`nnfs`         Neural Networks from Scratch: softmax or sigmoid together with its loss
`columns`      one sample per column, and code that has only the output y_hat left
`sklearn`      scikit-learn: ``StableMLPClassifier``
`autograd`     HIPS autograd: functions with first and second derivatives
`thinc`        thinc: loss objects and their registry names
`xgboost`      XGBoost: custom objectives and metrics
`lightgbm`     LightGBM: custom objectives and metrics
`dask`         Dask arrays: losses of logits in chunks, larger than memory or a machine
`mpi`          MPI: ranks that share the classes, ``ClassParallel``, or the rows, ``RowParallel``
`torch`        PyTorch: functions of CPU tensors with first and second derivatives
=============  ============================================================================

Import the module by its name, ``from stableloss.adapters import nielsen``. Each one begins with the
lines to change in a program that uses the library.
"""
