"""The functions that Keras runs step by step, followed by a check."""

import keras


class CheckedFunctions(keras.Model):
    """Checks after each step, on backends where Keras keeps no state apart.

    A subclass gives `_checked`, from a step to the step with its check.
    """

    def bring_up_to_date(self):
        """Nothing: variables have their current values."""

    def make_train_function(self, force=False):
        """Makes the training step, followed by the check of its data."""
        if self.train_function is None or force:
            super().make_train_function(force=True)
            self.train_function = self._checked(self.train_function)
        return self.train_function

    def make_test_function(self, force=False):
        """Makes the evaluation step, followed by the check of its data."""
        if self.test_function is None or force:
            super().make_test_function(force=True)
            self.test_function = self._checked(self.test_function)
        return self.test_function
