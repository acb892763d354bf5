"""Task names by family, as patterns of `fnmatch`: what the presets of the agents go by. And what scores mean."""

DMC = (
    *("AcrobotSwingup*", "BallInCup*", "Cartpole[BST]*", "CheetahRun*", "Dog*", "Finger*", "FishSwim*", "FishUpright*"),
    *("HopperHop*", "HopperStand*", "Humanoid[SWR]*-v1", "HumanoidCMU*", "Manipulator*", "PendulumSwingup*"),
    *("PointMass*-v1", "Quadruped*", "Reacher[EH]*", "SwimmerSwimmer*", "Stacker*", "Walker[SWR]*"),
)
"""DeepMind Control: rewards within 0 and 1, episodes of 1,000 steps without an end before"""

PLAYGROUND = (
    *("Apollo*", "Barkour*", "Berkeley*", "G1Joystick*", "Go1*", "H1Inplace*", "H1Joystick*", "Op3*", "Spot*"),
    *("T1Joystick*", "Aero*", "Aloha*", "LeapCube*", "Panda*", "MuJoCoPlayground/*"),
)
"""MuJoCo Playground, robots: rewards times the control time step, so returns are tens"""

GYM_MUJOCO = (
    *("Ant-v[345]", "HalfCheetah-v[345]", "Hopper-v[345]", "Humanoid-v[345]", "HumanoidStandup-v[2345]"),
    *("InvertedDoublePendulum-v[245]", "InvertedPendulum-v[245]", "Pusher-v[245]", "Reacher-v[245]"),
    *("Swimmer-v[345]", "Walker2d-v[345]"),
)
"""Gymnasium's MuJoCo tasks"""

HUMANOIDBENCH = ("h1-*-v0", "h1hand-*-v0")
"""HumanoidBench: rewards within 0 and 1 in most tasks, episodes of 1,000 steps"""

SETS = {"MetaWorld/MT10-v3": 10, "MetaWorld/MT50-v3": 50}
"""Sets of tasks that have a name, and how many they are"""

ISAACLAB = ("Isaac-*",)
"""Isaac Lab's own names"""

CLASSIC = ("CartPole-v[01]", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v[01]")
"""Gymnasium's classic control"""

ATARI_SCORES: dict[str, tuple[float, float]] = {
    "Alien": (227.8, 7127.7),
    "Amidar": (5.8, 1719.5),
    "Assault": (222.4, 742),
    "Asterix": (210, 8503.3),
    "Asteroids": (719.1, 47388.7),
    "Atlantis": (12850, 29028.1),
    "BankHeist": (14.2, 753.1),
    "BattleZone": (2360, 37187.5),
    "BeamRider": (363.9, 16926.5),
    "Berzerk": (123.7, 2630.4),
    "Bowling": (23.1, 160.7),
    "Boxing": (0.1, 12.1),
    "Breakout": (1.7, 30.5),
    "Centipede": (2090.9, 12017),
    "ChopperCommand": (811, 7387.8),
    "CrazyClimber": (10780.5, 35829.4),
    "Defender": (2874.5, 18688.9),
    "DemonAttack": (152.1, 1971),
    "DoubleDunk": (-18.6, -16.4),
    "Enduro": (0, 860.5),
    "FishingDerby": (-91.7, -38.7),
    "Freeway": (0, 29.6),
    "Frostbite": (65.2, 4334.7),
    "Gopher": (257.6, 2412.5),
    "Gravitar": (173, 3351.4),
    "Hero": (1027, 30826.4),
    "IceHockey": (-11.2, 0.9),
    "Jamesbond": (29, 302.8),
    "Kangaroo": (52, 3035),
    "Krull": (1598, 2665.5),
    "KungFuMaster": (258.5, 22736.3),
    "MontezumaRevenge": (0, 4753.3),
    "MsPacman": (307.3, 6951.6),
    "NameThisGame": (2292.3, 8049),
    "Phoenix": (761.4, 7242.6),
    "Pitfall": (-229.4, 6463.7),
    "Pong": (-20.7, 14.6),
    "PrivateEye": (24.9, 69571.3),
    "Qbert": (163.9, 13455),
    "Riverraid": (1338.5, 17118),
    "RoadRunner": (11.5, 7845),
    "Robotank": (2.2, 11.9),
    "Seaquest": (68.4, 42054.7),
    "Skiing": (-17098.1, -4336.9),
    "Solaris": (1236.3, 12326.7),
    "SpaceInvaders": (148, 1668.7),
    "StarGunner": (664, 10250),
    "Surround": (-10, 6.5),
    "Tennis": (-23.8, -8.3),
    "TimePilot": (3568, 5229.2),
    "Tutankham": (11.4, 167.6),
    "UpNDown": (533.4, 11693.2),
    "Venture": (0, 1187.5),
    "VideoPinball": (16256.9, 17667.9),
    "WizardOfWor": (563.5, 4756.5),
    "YarsRevenge": (3092.9, 54576.9),
    "Zaxxon": (32.5, 9173.3),
}
"""Mean score of a random player and of a professional human, for the 57 games of the Arcade Learning Environment that
have been compared since Mnih et al. (2015). Source: the no-op-start table of DQN Zoo (Quan and Ostrovski, 2020)."""

OTHER_GAMES = (
    "Adventure AirRaid Atlantis2 Backgammon BasicMath Blackjack Carnival Casino Crossbow Darkchambers "
    "DonkeyKong Earthworld ElevatorAction Entombed Et FlagCapture Frogger Galaxian Hangman HauntedHouse "
    "HumanCannonball JourneyEscape Kaboom KeystoneKapers KingKong Klax Koolaid LaserGates LostLuggage "
    "MarioBros MiniatureGolf MrDo Othello Pacman Pitfall2 Pooyan SirLancelot SpaceWar Superman Tetris "
    "TicTacToe3d Trondead Turmoil VideoCheckers VideoChess VideoCube WordZapper"
)

ATARI = tuple(f"{prefix}{game}-v5" for game in (*ATARI_SCORES, *OTHER_GAMES.split()) for prefix in ("", "ALE/"))
"""Atari 2600, as EnvPool and as Gymnasium name the games"""


def human_normalised(task: str, score: float) -> float | None:
    """Return the score of a game where 0 is a random player and 1 a human; None where these are not known."""
    game = task.rpartition("/")[2].removesuffix("-v5")
    if task not in ATARI or game not in ATARI_SCORES:
        return None
    random, human = ATARI_SCORES[game]
    return (score - random) / (human - random)


def with_human(task: str, prefix: str, metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics, with the human-normalised score beside the return of a game where it is known."""
    returned = metrics.get(f"{prefix}episodic_return")
    normal = None if returned is None else human_normalised(task, returned)
    return metrics if normal is None else {**metrics, f"{prefix}human_normalised_score": normal}


def tasks_in(task: str) -> int:
    """Return how many tasks a name stands for, of each of which there must be as many environments."""
    return SETS.get(task, task.count("+") + 1)
