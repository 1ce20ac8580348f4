"""What the callback of the metrics does where training ends early."""


def test_an_error_before_the_first_step_has_no_record_to_end():
    from nemo_longpo.nemo.callbacks import MetricsCallback

    MetricsCallback().on_exception(None, None, ValueError("before the first step"))
