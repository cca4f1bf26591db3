from unet.data.sampler import SeededBatchSampler


def test_passes_follow_each_other_in_full_batches() -> None:
    places = [place for batch in SeededBatchSampler(6, 4, 5, start=0, stop=6) for place in batch]
    assert len(places) == 24
    orders = [[index for number, index in places if number == which] for which in range(4)]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len(set(map(tuple, orders))) == 4  # each its own
    assert [number for number, _ in places] == sorted(number for number, _ in places)


def test_a_batch_is_a_function_of_seed_and_number() -> None:
    whole = list(SeededBatchSampler(50, 8, 5, start=0, stop=20))
    assert list(SeededBatchSampler(50, 8, 5, start=13, stop=20)) == whole[13:]
    stream = SeededBatchSampler(50, 8, 5, start=0, stop=20)
    assert [stream.batch(i) for i in (17, 3, 9)] == [whole[i] for i in (17, 3, 9)]
    assert list(SeededBatchSampler(50, 8, 6, start=0, stop=20)) != whole


def test_shards_of_a_batch_make_up_the_batch() -> None:
    whole = list(SeededBatchSampler(50, 6, 5, start=2, stop=9))
    shards = [list(SeededBatchSampler(50, 6, 5, 2, 9, shard=(rank, 3))) for rank in range(3)]
    assert [[*a, *b, *c] for a, b, c in zip(*shards, strict=True)] == whole


def test_batches_may_be_larger_than_the_data() -> None:
    (batch,) = SeededBatchSampler(3, 8, 0, start=1, stop=2)
    assert [number for number, _ in batch] == [2, 3, 3, 3, 4, 4, 4, 5]
