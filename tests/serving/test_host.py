import asyncio

import pytest
import torch

from kinfolk.contract import DataSpec
from kinfolk.sampling import make_request, run


def test_a_new_version_takes_new_requests_while_the_old_one_finishes_its_own(make_host, make_walk):
    old, new = make_walk(), make_walk()
    new.module.weight.data.fill_(2.0)
    request = make_request(old, n=3, options={"steps": 5})

    async def scenario():
        host = make_host(old)
        old.module.watch.gate.clear()
        before = asyncio.create_task(host.current.batcher.run(request))
        while not old.module.watch.entered.is_set():
            await asyncio.sleep(0.001)
        retiring = host.current.batcher
        await host.switch(new, "4")
        after = await host.current.batcher.run(request)
        assert not before.done()
        assert not retiring.alive
        old.module.watch.gate.set()
        results = (await before).samples, after.samples, host.current.version
        await host.close()
        assert not host.ready
        return results

    before, after, version = asyncio.run(scenario())
    assert version == "4"
    assert torch.equal(before, run(old.tasks, request))
    assert torch.equal(after, run(new.tasks, request))
    assert not torch.equal(before, after)


def test_each_version_has_the_request_body_of_its_own_model(make_host, make_walk):
    wide = make_walk(DataSpec(kind="image", shape=(1, 4, 4), levels=256, classes=99))

    async def scenario():
        host = make_host(make_walk())
        bodies = [host.current.services["sample"].body]
        await host.switch(wide, "4")
        bodies.append(host.current.services["sample"].body)
        await host.close()
        return bodies

    narrow_body, wide_body = asyncio.run(scenario())
    assert wide_body.model_validate({"label": 50}).label == 50
    with pytest.raises(ValueError, match="less than 10"):
        narrow_body.model_validate({"label": 50})
