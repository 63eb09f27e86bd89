"""The merge's threads."""


def test_blas_is_held_to_one_thread_and_let_go():
    from threadpoolctl import ThreadpoolController

    from runtime.merge.threads import _controller, one_thread

    _controller.cache_clear()  # another test may have loaded another BLAS since

    pools = ThreadpoolController().select(user_api="blas")
    before = [pool["num_threads"] for pool in pools.info()]
    with one_thread(), one_thread():
        assert all(pool["num_threads"] == 1 for pool in pools.info()) and pools.info()
    assert [pool["num_threads"] for pool in pools.info()] == before
