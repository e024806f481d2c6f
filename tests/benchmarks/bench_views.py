"""Views a second: ours beside torchvision v2, lightly and Kornia, on the same images and MoCo v2's policy.

    ssl-lessons bench views [--sizes 64 128] [--repeats 5] [--json FILE] [--data NAME]

Everyone starts from decoded images in memory and ends with normalised float32 views; all cores are used by
all: torchvision and lightly in a pool of one process a core (each image transformed where it already lies,
only a count goes back, so they pay nothing for transport), ours and Kornia by their own batching. The peers
take turns within each repeat, and a rate is the median of the repeats, so that a busy machine slows everyone.
A peer that is not installed is skipped with the reason. `--data`: a dataset's name, "auto" (Imagenette if it
is on disk, else shapes) or "noise" (smooth random images; nothing of ours is needed for them).
"""

import multiprocessing
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from statistics import median

import harness
import torch

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_worker = {}  # filled in each process of a pool


def images_for(data: str, count: int, size: int) -> tuple[torch.Tensor, str]:
    """uint8 (count, 3, size, size), laid out as an ImageStore's, and a line saying what they are."""
    if data != "noise":
        from ssl_lessons import images

        for name in ("imagenette", "shapes") if data == "auto" else (data,):
            try:
                store = images.load(name, "train", size=size, progress=False, download=False)
            except Exception as error:  # any reason not to have this dataset; said aloud, the next is tried
                print(f"# {name} at {size} px is not at hand: {str(error).splitlines()[0]}", file=sys.stderr)
                continue
            index = torch.linspace(0, len(store) - 1, count).long()
            return store.batch(index), f"{name}, {count} training images at {size} px"
        if data != "auto":
            raise SystemExit(f"--data {data!r} could not be loaded; try --data auto or --data noise")
    noise = torch.rand(count, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    pixels = torch.nn.functional.interpolate(noise, (size, size), mode="bicubic").clamp(0, 1) * 255
    pixels = pixels.byte().permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)
    return pixels, f"smooth random images, {count} at {size} px (not photographs)"


def torchvision_transform(size: int):
    """MoCo v2's composition in transforms.v2 on uint8 tensors, the fastest form its documentation gives."""
    from torchvision.transforms import v2

    blur = v2.GaussianBlur(2 * min(8, (size - 1) // 2) + 1, (0.1, 2.0))
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([blur], p=0.5),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def lightly_transform(size: int):
    """lightly's own MoCoV2Transform for one view; it works on PIL images."""
    from lightly.transforms import MoCoV2Transform

    return MoCoV2Transform(input_size=size).transforms[0]


def _start(kind: str, images, size: int) -> None:
    torch.set_num_threads(1)
    if kind == "lightly":
        from PIL import Image

        _worker["images"] = [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).numpy()]
        _worker["transform"] = lightly_transform(size)
    else:
        _worker["images"] = list(images.contiguous())
        _worker["transform"] = torchvision_transform(size)


def _work(span: tuple[int, int]) -> int:
    views = [_worker["transform"](image) for image in _worker["images"][slice(*span)]]
    return len(torch.stack(views))  # a batch has to be put together, as a loader does


class Pool:
    """One process a core, each holding all the images; called, it transforms every image once."""

    def __init__(self, kind: str, images, size: int, cores: int):
        context = multiprocessing.get_context("spawn")  # a fork of a process with torch's threads may hang
        self.pool = context.Pool(cores, _start, (kind, images, size))
        step = max(1, len(images) // (4 * cores))
        self.spans = [(start, min(start + step, len(images))) for start in range(0, len(images), step)]

    def __call__(self) -> int:
        return sum(self.pool.map(_work, self.spans, chunksize=1))

    def close(self) -> None:
        self.pool.terminate()
        self.pool.join()


def ours(images, size: int):
    from ssl_lessons import views

    generator = torch.Generator().manual_seed(0)
    return lambda: len(views.views(images, views.MOCO_V2, generator, size))


def kornia(images, size: int):
    """Kornia's batched augmentation: every image its own parameters, all cores through torch's threads."""
    import kornia.augmentation as K

    width = 2 * min(8, (size - 1) // 2) + 1
    augment = K.AugmentationSequential(
        K.RandomResizedCrop((size, size), scale=(0.2, 1.0)),
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((width, width), (0.1, 2.0), p=0.5),
        K.RandomHorizontalFlip(p=0.5),
        K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    )
    return lambda: len(augment(images.float() / 255))


def measure(images, size: int, repeats: int, cores: int) -> dict:
    """{name: {"views_per_second": median, "runs": [...]}} or {name: {"skipped": reason}}."""
    makers = {
        "ours": lambda: ours(images, size),
        "torchvision": lambda: Pool("torchvision", images, size, cores),
        "lightly": lambda: Pool("lightly", images, size, cores),
        "kornia": lambda: kornia(images, size),
    }
    results, runners = {}, {}
    for name, make in makers.items():
        try:
            if name != "ours":
                version(name)
            runners[name] = make()
            runners[name]()  # warm-up
            results[name] = {"runs": []}
        except (ImportError, PackageNotFoundError) as error:
            results[name] = {"skipped": f"not installed ({error})"}
    try:
        for _ in range(repeats):
            for name, run in runners.items():
                start = time.perf_counter()
                count = run()
                results[name]["runs"].append(count / (time.perf_counter() - start))
    finally:
        for run in runners.values():
            if isinstance(run, Pool):
                run.close()
    for result in results.values():
        if "runs" in result:
            result["views_per_second"] = median(result["runs"])
    return results


def main(argv=None) -> int:
    parser = harness.options(__doc__.splitlines()[0], sizes=[64, 128], repeats=5, count=256)
    parser.add_argument("--data", default="auto", help="a dataset's name, auto, or noise")
    args = parser.parse_args(argv)
    if min(args.repeats, args.count, *args.sizes) < 1:
        parser.error("--repeats, --count and --sizes must be at least 1")
    cores = harness.cores()
    torch.set_num_threads(cores)
    report = {"machine": harness.machine("cpu"), "policy": "moco_v2", "sizes": {}}
    for size in args.sizes:
        images, source = images_for(args.data, args.count, size)
        report["sizes"][str(size)] = {"data": source, "results": measure(images, size, args.repeats, cores)}
    harness.publish(args, report, table(report))
    return 0


def table(report: dict) -> str:
    names = list(next(iter(report["sizes"].values()))["results"])
    rows = []
    for size, one in report["sizes"].items():
        rates = [one["results"][name].get("views_per_second") for name in names]
        rows.append((f"{size} px", *(f"{rate:,.0f}" if rate else "–" for rate in rates), one["data"]))
    text = (
        f"Views a second, MoCo v2's policy, seed 0, all {report['machine']['cores']} cores, medians of "
        f"the runs. {harness.where(report, 'torchvision', 'lightly', 'kornia')}"
    )
    return f"{text}\n\n{harness.table(('', *names, 'images'), rows)}"


if __name__ == "__main__":
    sys.exit(main())
