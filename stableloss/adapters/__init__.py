"""The losses in networks that exist already: one small module per family, none imported before it is used.

=============  ================================================================================
`layer`        nets made of objects: a last layer, ``LossLayer``, or a loss object, ``LossObject``
`cs231n`       CS231n: ``softmax_loss``, ``temporal_softmax_loss``
`nielsen`      Neural Networks and Deep Learning: ``CrossEntropyCost``, ``QuadraticCost``
`nnfs`         Neural Networks from Scratch: the losses of its ``Model``, also with their activation
`columns`      one sample per column, and code that has only the output y_hat left
`sklearn`      scikit-learn: ``StableMLPClassifier``
`autograd`     HIPS autograd: functions with first and second derivatives
`thinc`        thinc: loss objects and their registry names
`xgboost`      XGBoost: custom objectives and metrics, ``StableXGBClassifier``
`lightgbm`     LightGBM: custom objectives and metrics, ``StableLGBMClassifier``
`torch`        PyTorch: functions of CPU tensors with derivatives by logits, targets and weights
`dask`         Dask arrays: losses of logits in chunks, larger than memory or a machine
`mpi`          MPI: ranks that share the classes, ``ClassParallel``, or the rows, ``RowParallel``
=============  ================================================================================

Import the module by its name, ``from stableloss.adapters import nielsen``. Each one begins with the
lines to change in a program that uses the library.
"""
