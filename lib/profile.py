"""How large each experiment is: ``quick`` for two CPU cores and a minute, ``full`` for one data-centre GPU.

One frozen dataclass of sizes a chapter; the reason of each size stands beside it. A chapter's digest covers its
own dataclass only, so that resizing one chapter leaves the others' published runs fresh.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TwoNeurons:
    """Sizes of *Two neurons* (claims P1-C1, P1-C2, P1-C4)."""

    networks: int  # trained on the first draw of the data
    networks_elsewhere: int  # trained on each further draw
    data_draws: int
    resamples: int  # bootstrap resamples of networks, per cell
    elements: int  # random group elements a network and seed (P1-C1)
    seeds: int  # of those elements
    chains: int  # HMC
    warmup: int
    draws: int
    leapfrog: int
    pairs: int  # midpoint inequalities (P1-C4)
    starts: int  # of each solver
    mass_networks: int  # networks of each kind whose minimum mass is found
    solved: int  # of them handed to the general solvers too


@dataclass(frozen=True)
class Posteriors:
    """Sizes of *The posterior at scale* (claims P1-C3, P1-C5 to P1-C13)."""

    networks: int  # independent networks: the reference, and those held out of it
    reference: int  # of them, the posterior that everything is measured against
    recipe_networks: int  # of each recipe of P1-C5
    shard: int  # networks trained by one task where the population is sharded
    repetitions: int  # of ten runs each, a method
    tuning_runs: int  # that each of a method's three candidates gets
    chains: int  # HMC
    warmup: int
    transitions: int
    leapfrog: int
    sweep_networks: int  # a setting of P1-C5b
    event_networks: int  # in each of three populations (P1-C12)
    event_examples: int  # that they learn from
    diversity_networks: int  # in each of three groups (P1-C11)
    fit_networks: int  # in each of five groups (P1-C13)
    resamples: int  # bootstrap


Widths = tuple[int, ...]


@dataclass(frozen=True)
class FreeEnergy:
    """Sizes of *The free energy* (claims P2-C1 to P2-C14, X-F1). Learners are hidden widths; inputs and outputs are the truth's."""

    points: int  # of the grid that stands for uniform inputs
    particles: int  # a copy of a climb
    copies: int  # independent climbs: the error bars
    last: float  # n at the end of a curve
    far: float  # the same where widths (P2-C4) and normal inputs (P2-C10) are compared
    wide: tuple[Widths, ...]  # T1, the truth's depth
    deep: tuple[Widths, ...]  # T1, layers added; each is compared with the learner of its first width
    two: tuple[Widths, ...]  # T2
    three: tuple[Widths, ...]  # T3
    constant: tuple[Widths, ...]  # T0
    normal: tuple[Widths, ...]  # T1, normal inputs
    watched: tuple[Widths, ...]  # whose units are counted (P2-C9)
    sets: int  # data sets at each n (P2-C3, C7)
    set_sizes: Widths  # their n
    set_learners: tuple[Widths, ...]  # T1, the truth-sized one first
    set_two: tuple[Widths, ...]  # T2, likewise
    set_copies: int
    set_particles: int
    identity_sizes: Widths  # n (P2-C8)
    identity_sets: int
    known_sets: int  # data sets with known answers (P2-C11)
    known_copies: int
    known_particles: int
    linear_particles: int
    ranks: Widths  # hidden units of reduced-rank regression
    rank_particles: int
    gap_sets: int  # bidirectional checks
    gap_particles: int
    bridge_sets: int  # X-F1
    bridge_sizes: Widths
    bridge_learners: tuple[Widths, ...]
    bridge_copies: int
    bridge_particles: int
    local_sets: int  # data sets with a local coefficient (P2-C12)
    convolutions: Widths  # redundant layers of the convolutional learners (P2-C13)
    convolution_particles: int


@dataclass(frozen=True)
class MatrixGaussian:
    """Sizes of *Matrix-Gaussian posteriors* (claims P3-C1 to P3-C12, X-F2, X-G1)."""

    exact_cases: int  # random matrices (P3-C1)
    exact_draws: int
    exact_seeds: int
    exact_layers: tuple[Widths, ...]  # the layers' own shapes
    draws_of_weights: int  # P3-C7
    draws_of_functions: int  # P3-C12
    points_on_line: int
    gradient_draws: int  # P3-C11
    mechanism_seeds: int  # of each of the three
    bound_sets: int  # data sets with an exact evidence (X-F2)
    price_learners: tuple[Widths, ...]  # T1, against the exact free energy
    price_particles: int
    problems: tuple[str, ...]  # regressions, the cubic toy among them (P3-C2 to C5, C9)
    splits: int  # of each
    with_subsets: tuple[str, ...]  # problems that are learned from few rows too (X-G1)
    subsets: Widths  # their training rows, beside all
    cubic_sizes: Widths  # training rows of the cubic toy
    cubic_splits: int
    updates: int
    batch: int  # at least, and a hundredth of the training rows
    rate: float
    average: float  # β3
    draws: int  # of a prediction
    pseudo: int
    noise: float  # λ
    naval: bool  # whether P3-C6 is run
    images: str
    image_widths: Widths
    image_trainings: int
    image_updates: int
    image_looks: int  # the last looks, a hundredth of the updates apart, whose mean is the error
    image_rows: int | None  # training images
    image_rates: tuple[float, float]  # of the matrix Gaussian, and of the other methods
    image_average: float
    image_pseudo: int
    image_draws: int
    timing_repeats: int  # P3-C10
    timing_steps: int

    def subsets_of(self, problem: str) -> Widths:
        """Numbers of training rows of a problem other than the toy; nothing stands for all."""
        return self.subsets if problem in self.with_subsets else ()


@dataclass(frozen=True)
class UnitNorm:
    """Sizes of *Optimising on the unit-norm manifold* (claims P4-C1 to P4-C10, P4-X1 to P4-X4, X-U1)."""

    networks: tuple[str, ...]  # dense, convolutional: tried for exactness and timed
    exact_seeds: int
    exact_steps: int
    factors: int  # random elements of the scaling group (P4-C1)
    decay_steps: int  # SGD with and without weight decay (P4-X4)
    images: str
    runs: int  # streams, each with images, start, order and searched rates of its own
    validation: int  # of the training images
    rates: tuple[float, ...]  # of the filters
    ratios: tuple[float, ...]  # the classifier's rate over the filters'
    search_epochs: int  # on 1,000 images
    search_schedules: bool  # a search for every schedule, or one for all
    epochs: int
    start_rates: tuple[float, ...]  # P4-C7 and X-U1
    start_runs: int
    start_epochs: int
    start_small: bool  # on the 1,000 images of a search
    tables: tuple[str, ...]  # X-U1
    table_runs: int
    table_splits: int  # a run
    table_updates: int
    scenes: bool  # whether SegNet is trained (P4-C9)
    scene_rates: tuple[float, ...]
    scene_seeds: int
    scene_epochs: int
    scene_batch: int
    timing_repeats: int
    timing_steps: int


@dataclass(frozen=True)
class ThreeModels:
    """Sizes of *Three models at once* (claims P5-C1 to P5-C11, P5-X1, X-M1). A setting names data and network."""

    images: str
    widths: tuple[int, ...]
    pictures: tuple[tuple[str, int], ...]  # settings and widths of convolutional networks
    picture_epochs: int
    networks: int  # of each width, training, shift and setting
    epochs: int
    alphas: int  # points of a line, ends included
    path_setting: str  # trajectories
    path_width: int
    path_epochs: tuple[int, ...]  # at which networks are kept; the last is the end
    chain_width: int  # chains, truncated weights, the decomposition, joint alignments
    many: int  # networks of that width
    sizes_together: tuple[int, ...]  # networks aligned at once
    methods_together: tuple[str, ...]  # by which
    shift_width: int
    prune_setting: str
    prune_width: int
    prune_levels: int
    prune_epochs: int  # of each level, from the rewound weights


@dataclass(frozen=True)
class OnePopulation:
    """Sizes of *One population, five lenses* (claims X-C1 to X-C12)."""

    images: str
    learn: int | None  # images to learn from; None: all of the training set
    widths: tuple[int, ...]  # one population each
    members: int
    epochs: int
    groups: int  # disjoint groups of networks, for Gaussians and variational starts
    paired: int  # networks whose pairs are joined
    alphas: int
    draws: int  # from each Gaussian
    twin_groups: int  # for the distance of plain and unit-norm networks
    heated: int  # chains of the heat
    heat_warmup: int
    heat_draws: int
    heat_leapfrog: int
    local_members: int  # networks with a local coefficient
    local_moved: int  # permuted copies of the first of them
    local_warmup: int
    local_draws: int
    local_leapfrog: int
    looks: tuple[int, ...]  # updates of variational inference at which its bound is read; the last is the end
    bound_draws: int
    resamples: int


@dataclass(frozen=True)
class Profile:
    """One named set of sizes."""

    name: str
    two_neurons: TwoNeurons
    posteriors: Posteriors
    free_energy: FreeEnergy
    matrix_gaussian: MatrixGaussian
    unit_norm: UnitNorm
    three_models: ThreeModels
    one_population: OnePopulation


QUICK = Profile(
    name="quick",
    two_neurons=TwoNeurons(
        networks=10_000,  # the paper's own number
        networks_elsewhere=4_000,  # enough for 2,000 kept networks where the loss filter keeps half
        data_draws=4,  # the notes ask for three; one more, because a draw can leave the filter empty
        resamples=100,  # the 2.5 % and 97.5 % points are then the 3rd and 98th of 100
        elements=20,
        seeds=3,
        chains=64,
        warmup=400,
        draws=1_000,  # a pilot on other draws: 800 bring R-hat of the slowest prediction to 1.007
        leapfrog=10,
        pairs=10_000,  # the notes' number
        starts=20,  # the notes' number
        mass_networks=16,
        solved=1,  # three solvers from 20 starts of one network: a second or two a kind
    ),
    posteriors=Posteriors(
        networks=800,  # enough for the ledger: 500 of the reference, 300 held out of it
        reference=500,  # the ledger's least number
        recipe_networks=510,  # the ledger's least number, and some to spare
        shard=500,  # two tasks for two cores
        repetitions=5,  # the ledger's least number
        tuning_runs=2,  # three candidates of two runs: an eighth of the final runs
        chains=10,
        warmup=20,  # from trained networks: the step size alone is sought
        transitions=50,  # as many as there are samples of a method
        leapfrog=15,  # two seconds
        sweep_networks=10,  # the ledger's least number
        event_networks=20,  # the ledger's least number
        event_examples=800,  # all there are
        diversity_networks=200,  # the ledger's least number
        fit_networks=100,  # the ledger's least number
        resamples=200,  # the 2.5 % and 97.5 % points are then the 5th and 195th
    ),
    free_energy=FreeEnergy(
        points=64,  # a kink between two points is still placed by the two lines beside it
        particles=1_000,  # the ledger's least number; a pilot's slopes then differ by 0.02 from copy to copy
        copies=4,  # one more than the ledger's least
        last=1e6,
        far=1e6,
        wide=((1,), (2,), (4,), (8,)),  # the ledger's scope, and one wide learner for P2-C2
        deep=((1, 1), (2, 2), (4, 4)),
        two=((1,),),  # too small on purpose (P2-C14)
        three=(),
        constant=((4,),),
        normal=((1,), (2,)),
        watched=((2,),),
        sets=120,  # a pilot's intervals of n (G - S) with fifty were as wide as the margin
        set_sizes=(100, 300),
        set_learners=((1,), (2,), (4,)),
        set_two=(),
        set_copies=3,  # the ledger's least number
        set_particles=48,  # three copies together are 144 draws of each posterior
        identity_sizes=(100,),
        identity_sets=200,  # the ledger's least number
        known_sets=80,  # with fifty, a coverage of 95 % would be missed by chance one time in ten
        known_copies=3,
        known_particles=150,
        linear_particles=300,  # ten dimensions and no output layer to integrate out
        ranks=(3, 4),  # one of each multiplicity
        rank_particles=400,
        gap_sets=20,  # twice the ledger's least number
        gap_particles=400,
        bridge_sets=20,  # the ledger's least number
        bridge_sizes=(100, 1_000),
        bridge_learners=((1,), (2,), (4,)),
        bridge_copies=2,
        bridge_particles=128,
        local_sets=50,  # the ledger's least number
        convolutions=(),  # out of reach in a minute
        convolution_particles=0,
    ),
    matrix_gaussian=MatrixGaussian(
        exact_cases=10,  # times seeds: above the ledger's twenty
        exact_draws=200_000,  # twice the ledger's least number
        exact_seeds=3,  # the ledger's least number
        exact_layers=(),
        draws_of_weights=10_000,  # the ledger's least number
        draws_of_functions=10_000,  # the ledger's least number
        points_on_line=50,  # the ledger's scope
        gradient_draws=200,  # the notes' number
        mechanism_seeds=3,  # the ledger's least number
        bound_sets=20,
        price_learners=((1,), (2,), (4,)),
        price_particles=128,
        problems=("cubic toy", "diabetes"),
        splits=10,  # the ledger's least number
        with_subsets=("diabetes",),
        subsets=(20, 80),
        cubic_sizes=(20, 80, 320),
        cubic_splits=10,
        updates=1_200,  # for twenty seconds; the learning curves are shown
        batch=10,
        rate=0.005,  # five times the authors', in a ninetieth of their updates; baselines have five times that too
        average=0.99,  # remembers a hundred updates, where the authors' 0.999 remembers a thousand
        draws=50,
        pseudo=5,  # the authors' yacht script
        noise=0.005,  # likewise
        naval=False,
        images="mnist5k",
        image_widths=(150,),
        image_trainings=3,  # the ledger's least number
        image_updates=200,  # five epochs
        image_looks=1,
        image_rows=None,
        image_rates=(0.005, 0.05),  # each the best of a pilot's 0.001, 0.005, 0.02 and 0.05
        image_average=0.99,
        image_pseudo=50,  # the authors' MNIST script
        image_draws=10,
        timing_repeats=5,  # the ledger's least number
        timing_steps=5,
    ),
    unit_norm=UnitNorm(
        networks=("dense",),
        exact_seeds=3,  # the ledger's least number
        exact_steps=60,  # likewise
        factors=20,  # likewise
        decay_steps=360,  # thirty epochs of digits
        images="mnist5k",
        runs=5,  # the ledger's least number
        validation=500,  # the protocol's
        rates=(0.316, 1.0, 3.16),  # a pilot chose none below 1 of six from 0.01
        ratios=(0.1, 1.0),  # likewise never ten
        search_epochs=6,  # with the next number: what a minute allows
        search_schedules=False,
        epochs=8,
        start_rates=tuple(10 ** (k / 2) for k in range(-5, 5)),  # the ledger's ten, half a decade apart
        start_runs=4,  # the ledger's least number
        start_epochs=8,
        start_small=True,
        tables=("wine-cultivars", "breast-cancer"),
        table_runs=5,  # the ledger's least number
        table_splits=3,
        table_updates=150,
        scenes=False,
        scene_rates=(),
        scene_seeds=0,
        scene_epochs=0,
        scene_batch=0,
        timing_repeats=5,  # the ledger's least number
        timing_steps=20,
    ),
    three_models=ThreeModels(
        images="digits",
        widths=(32, 64, 128, 256),  # the ledger's
        pictures=(),
        picture_epochs=0,
        networks=10,  # the ledger's least number
        epochs=20,  # 97 to 98 % of the test digits right, at half the time of 40
        alphas=7,  # five between the ends; barriers are widest near the middle
        path_setting="digits",
        path_width=64,  # twice as wide takes twice the seconds, and showed the same in pilots
        path_epochs=(1, 2, 4, 8, 14, 20),
        chain_width=128,
        many=24,  # three groups of eight
        sizes_together=(3, 5, 8),  # the ledger's
        methods_together=("reference", "joint"),  # MergeMany would take five seconds more
        shift_width=64,
        prune_setting="digits",
        prune_width=128,  # twice as wide would take a third of the minute
        prune_levels=10,  # the ledger's
        prune_epochs=6,
    ),
    one_population=OnePopulation(
        images="digits",
        learn=500,  # every gradient of a chain reads all of them
        widths=(16,),
        members=200,
        epochs=60,
        groups=10,  # of twenty
        paired=40,  # 780 pairs
        alphas=11,
        draws=50,
        twin_groups=5,  # of forty
        heated=8,
        heat_warmup=100,  # the chains begin near the heat
        heat_draws=100,
        heat_leapfrog=20,
        local_members=24,
        local_moved=12,
        local_warmup=80,
        local_draws=200,
        local_leapfrog=6,
        looks=(100, 300, 1_000),
        bound_draws=20,
        resamples=2_000,
    ),
)


FULL = Profile(
    name="full",
    two_neurons=TwoNeurons(
        networks=100_000,  # the notes' number: ten times the paper's
        networks_elsewhere=100_000,
        data_draws=8,
        resamples=200,  # 16 cells of 100,000 points: a thousand would take ten minutes
        elements=100,
        seeds=10,
        chains=1_024,
        warmup=1_000,
        draws=3_000,
        leapfrog=10,
        pairs=100_000,
        starts=50,
        mass_networks=1_000,  # the notes' number
        solved=20,
    ),
    posteriors=Posteriors(
        networks=8_192,  # the paper released as many
        reference=1_000,  # the paper's own number
        recipe_networks=1_050,  # the ledger's least number, and some to spare
        shard=4_096,  # a card holds many more; what is done is kept
        repetitions=10,
        tuning_runs=4,
        chains=8,  # every gradient reads 55,000 images: minutes
        warmup=20,
        transitions=50,
        leapfrog=10,
        sweep_networks=20,
        event_networks=100,
        event_examples=6_000,  # every step is looked at: all 55,000 would take a quarter of an hour
        diversity_networks=1_000,  # the paper's own number, three times: 4,498,500 pairs
        fit_networks=1_000,
        resamples=1_000,
    ),
    free_energy=FreeEnergy(
        points=256,
        particles=100_000,  # the ledger's least number: a phase of prior mass 1e-4 still holds ten particles
        copies=8,
        last=1e6,
        far=1e8,
        wide=((1,), (2,), (4,), (8,), (16,), (32,)),
        deep=((1, 1), (1, 1, 1), (1, 1, 1, 1), (1, 1, 1, 1, 1, 1), (2, 2), (2, 2, 2), (4, 4)),
        two=((1,), (2,), (3,), (4,), (8,), (16,)),
        three=((2, 2),),
        constant=((4,), (4, 4, 4)),
        normal=((1,), (2,), (4,)),
        watched=((2,), (4,), (2, 2)),
        sets=200,
        set_sizes=(100, 300, 1_000),
        set_learners=((1,), (2,), (4,), (8,), (16,)),
        set_two=((2,), (3,), (4,)),
        set_copies=8,
        set_particles=512,
        identity_sizes=(100, 1_000),
        identity_sets=1_000,
        known_sets=200,
        known_copies=8,
        known_particles=1_000,
        linear_particles=4_000,  # brings every one of 200 data sets within 0.1 nats
        ranks=(3, 4, 5, 6),
        rank_particles=10_000,
        gap_sets=100,
        gap_particles=2_000,
        bridge_sets=50,
        bridge_sizes=(30, 100, 300, 1_000),
        bridge_learners=((1,), (2,), (4,), (8,), (16,), (1, 1), (2, 2)),
        bridge_copies=4,
        bridge_particles=256,
        local_sets=100,
        convolutions=(0, 1, 2),
        convolution_particles=10_000,  # the ledger's least number
    ),
    matrix_gaussian=MatrixGaussian(
        exact_cases=100,
        exact_draws=1_000_000,
        exact_seeds=10,
        exact_layers=((7, 50), (51, 1), (151, 10)),
        draws_of_weights=100_000,
        draws_of_functions=100_000,
        points_on_line=200,  # the ledger's scope
        gradient_draws=1_000,
        mechanism_seeds=10,
        bound_sets=100,
        price_learners=((1,), (2,), (4,), (8,)),
        price_particles=256,
        problems=("cubic toy", "boston", "concrete", "energy", "kin8nm", "power", "protein", "wine", "yacht"),
        splits=20,  # the published ones; protein has five
        with_subsets=("boston", "concrete", "energy", "yacht"),
        subsets=(20, 60, 150),
        cubic_sizes=(20, 40, 80, 160, 320),
        cubic_splits=50,  # the ledger's least number
        updates=110_000,  # the authors' on yacht; batches grow with the set, so that every row is seen 1,100 times or more
        batch=5,  # the authors' on yacht
        rate=0.001,  # the authors'
        average=0.999,  # the authors'
        draws=100,  # the authors'
        pseudo=5,
        noise=0.005,
        naval=True,
        images="mnist",
        image_widths=(150, 250, 500, 750),
        image_trainings=3,
        image_updates=50_000,  # 100 epochs of 50,000 images in batches of 100
        image_looks=10,  # the ledger's last ten epochs
        image_rows=50_000,
        image_rates=(0.001, 0.005),
        image_average=0.999,
        image_pseudo=50,
        image_draws=100,
        timing_repeats=20,
        timing_steps=50,
    ),
    unit_norm=UnitNorm(
        networks=("dense", "convolutional"),
        exact_seeds=10,
        exact_steps=60,
        factors=100,
        decay_steps=720,
        images="mnist",
        runs=10,  # the protocol's
        validation=10_000,  # likewise
        rates=tuple(10 ** (k / 2) for k in range(-7, 3)),  # ten, the best of every pilot inside
        ratios=(0.1, 0.316, 1.0, 3.16),
        search_epochs=50,  # the protocol's
        search_schedules=True,
        epochs=60,  # the protocol's most; none stops early, so that all are as long
        start_rates=tuple(10 ** (k / 4) for k in range(-10, 10)),  # the ledger's twenty
        start_runs=20,  # the notes' number
        start_epochs=10,
        start_small=False,
        tables=("concrete", "energy", "kin8nm"),
        table_runs=10,  # the ledger's least number
        table_splits=2,  # of the twenty published ones
        table_updates=3_000,
        scenes=True,
        scene_rates=(0.01, 0.0316, 0.1, 0.316, 1.0, 3.16),  # six, around SegNet's published 0.1
        scene_seeds=3,  # the notes' number
        scene_epochs=100,  # likewise
        scene_batch=8,
        timing_repeats=20,
        timing_steps=50,
    ),
    three_models=ThreeModels(
        images="mnist",
        widths=(32, 64, 128, 256, 512, 1024, 2048, 4096),
        pictures=(
            *(("cifar10/vgg-16", w) for w in (16, 32, 64, 128)),
            *(("cifar10/resnet-20", w) for w in (16, 32, 64, 128)),
        ),
        picture_epochs=20,  # a short schedule (the authors' has 160), without augmentation
        networks=10,
        epochs=20,
        alphas=25,  # the authors'
        path_setting="cifar10/vgg-16",
        path_width=64,
        path_epochs=(1, 2, 3, 5, 8, 12, 16, 20),
        chain_width=512,
        many=40,
        sizes_together=(3, 5, 8),
        methods_together=("reference", "joint", "merge_many"),
        shift_width=512,
        prune_setting="cifar10/vgg-16",
        prune_width=64,
        prune_levels=20,  # the authors'
        prune_epochs=15,
    ),
    one_population=OnePopulation(
        images="mnist",
        learn=None,
        widths=(16, 32, 64),
        members=2_000,  # the number
        epochs=20,
        groups=10,  # of two hundred
        paired=100,
        alphas=25,
        draws=200,
        twin_groups=10,
        heated=8,
        heat_warmup=300,
        heat_draws=300,
        heat_leapfrog=20,
        local_members=48,
        local_moved=24,
        local_warmup=200,
        local_draws=400,
        local_leapfrog=8,
        looks=(300, 1_000, 3_000, 10_000),
        bound_draws=50,
        resamples=10_000,
    ),
)


def get(name: str) -> Profile:
    """The profile called ``quick`` or ``full``; raises ValueError for any other name."""
    profiles = {profile.name: profile for profile in (QUICK, FULL)}
    if name not in profiles:
        raise ValueError(f"there is no profile called {name!r}: choose quick or full.")
    return profiles[name]
