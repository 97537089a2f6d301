"""A report on a user's own networks: what their symmetries are, whether they can be merged, what they are worth together.

From the shell: ``python -m lib.report CHECKPOINTS --builder module:function --data DATA``. In a notebook, step by step::

    build = builder("torchvision.models:resnet18")
    models = checkpoints.read("runs/", build)
    halves = data_source.draw(data_source.read("data.npz"), 1000)
    structure = assess.structure(models.net, halves.example)
    mass = assess.mass(models, structure.symmetries)
    alignment = assess.align(mass.balanced, structure.symmetries)
    merging = assess.merging(models, halves, structure.symmetries, alignment)
    print(*sentences.say(merging), sep="\\n")
"""
