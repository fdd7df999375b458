"""Class relations in a teacher's soft targets, as sums of a fixed size."""

import tensorflow as tf

# Entries of a per-class profile: all classes up to 2,048, else the first rows.
PROFILE_CELLS = 2**22
# Fewer other examples than this make no mean of a class.
_FEWEST_OTHERS = 5
# A competitor that would win against a label of even odds now and then.
_STRONG = 0.25


class Relations(tf.Module):
    """What the non-target part of soft targets says, by label.

    Per-class means are kept on the device as the data go by, in three
    [rows, classes] tables: the rows are the first classes, as many as
    `PROFILE_CELLS` allows. Each example is held against the mean of the
    *other* examples of its label seen so far, so that what it has in common
    with them is no artefact of counting it on both sides.

    Args:
        num_classes: integer, at least 3.
        temperature: float above 0, of the soft targets.
    """

    def __init__(self, num_classes, temperature):
        super().__init__()
        self.num_classes = num_classes
        self.temperature = temperature
        self.rows = max(min(num_classes, PROFILE_CELLS // num_classes), 1)
        shape = (self.rows, num_classes)
        # Sums of non-target probabilities by label, and with the labels of a
        # batch shuffled, which keeps all but the relation to the label.
        self.by_label = tf.Variable(tf.zeros(shape), trainable=False)
        self.by_shuffled_label = tf.Variable(tf.zeros(shape), trainable=False)
        self.log_profiles = tf.Variable(tf.zeros(shape), trainable=False)
        self.counts = tf.Variable(tf.zeros((2, self.rows)), trainable=False)

    def totals(self):
        """Dict of the tables, as float64 NumPy arrays."""
        tables = {
            "relations": self.by_label,
            "control": self.by_shuffled_label,
            "profile_counts": self.counts,
        }
        return {k: v.numpy().astype("float64") for k, v in tables.items()}

    def batch_sums(self, labels, logits):
        """Takes note of a batch.

        Args:
            labels: [examples] int32, inside [0, classes).
            logits: [examples, classes] float32, the teacher's.

        Returns:
            Dict of sums.
        """
        is_label = tf.one_hot(labels, self.num_classes, True, False, -1, "bool")
        scaled = logits / self.temperature
        log_p = tf.nn.log_softmax(tf.where(is_label, -1e9, scaled))
        log_p = tf.where(is_label, 0.0, log_p)
        p = tf.where(is_label, 0.0, tf.exp(log_p))
        others = self.num_classes - 1
        mean_log = tf.reduce_sum(log_p, -1, keepdims=True) / others
        centred = tf.where(is_label, 0.0, log_p - mean_log)
        self._add(labels, p, centred)

        label_logit = tf.gather(logits, labels, batch_dims=1)
        mean_other = (tf.reduce_sum(logits, -1) - label_logit) / others
        known = tf.where(labels < self.rows)[:, 0]
        labels, centred, logits, scaled, is_label = (
            tf.gather(each, known)
            for each in (labels, centred, logits, scaled, is_label)
        )
        mean, has_mean = self._mean_of_others(labels, centred)
        return {
            "off_label_entropy": -tf.reduce_sum(p * log_p),
            "logit_margin": tf.reduce_sum(label_logit - mean_other),
            "ranked": _count(tf.ones_like(has_mean)),
            **self._by_rank(
                labels, centred, mean, has_mean, tf.nn.softmax(scaled)
            ),
            **self._competitors(
                is_label, centred, mean, has_mean, tf.nn.softmax(logits)
            ),
        }

    def _add(self, labels, p, centred):
        shuffled = tf.random.shuffle(labels)
        for table, rows, values in (
            (self.by_label, labels, p),
            (self.by_shuffled_label, shuffled, p),
            (self.log_profiles, labels, centred),
        ):
            kept = tf.where(rows < self.rows)[:, 0]
            table.scatter_add(
                tf.IndexedSlices(tf.gather(values, kept), tf.gather(rows, kept))
            )
        ones = tf.ones_like(labels, "float32")
        self.counts.assign_add(
            tf.stack(
                [
                    tf.math.unsorted_segment_sum(ones, rows, self.rows)
                    for rows in (
                        tf.where(labels < self.rows, labels, -1),
                        tf.where(shuffled < self.rows, shuffled, -1),
                    )
                ]
            )
        )

    def _mean_of_others(self, labels, centred):
        """[n, classes] mean of the label's other examples; whether enough."""
        others = tf.gather(self.counts[0], labels) - 1
        total = tf.gather(self.log_profiles, labels) - centred
        mean = total / tf.maximum(others, 1.0)[:, None]
        return mean, others >= _FEWEST_OTHERS

    def _by_rank(self, labels, centred, mean, has_mean, probabilities):
        """By rank of a class in the soft target: its mass, and its relation.

        `relation_by_rank` holds the number of examples and sums of u, m, u²,
        m² and u·m, with u the example's log-probability of the class at that
        rank and m its mean over the others. The label has no part in it.
        """
        mass, order = tf.math.top_k(probabilities, self.num_classes)
        u = tf.gather(centred, order, batch_dims=1)
        m = tf.gather(mean, order, batch_dims=1)
        used = has_mean[:, None] & (order != labels[:, None])
        used = tf.cast(used, "float32")
        moments = (used, u, m, u * u, m * m, u * m)
        return {
            "mass_by_rank": tf.reduce_sum(mass, 0),
            "relation_by_rank": tf.stack(
                [tf.reduce_sum(used * each, 0) for each in moments]
            ),
        }

    def _competitors(self, is_label, centred, mean, has_mean, probabilities):
        """The likeliest class beside the label: how likely, how related.

        Its place among all classes in the mean of the label's other examples
        is 1 for the most related class, and on average 1/2 for one that comes
        from nowhere, as the true class of a mislabelled example does.
        """
        likeliest = tf.argmax(tf.where(is_label, -1e9, centred), -1)[:, None]
        probability = tf.gather(probabilities, likeliest, batch_dims=1)[:, 0]
        below = mean < tf.gather(mean, likeliest, batch_dims=1)
        place = _count(below & ~is_label, -1) / (self.num_classes - 2)
        strong = tf.cast(has_mean & (probability > _STRONG), "float32")
        return {
            "placed": _count(has_mean),
            "strong_competitors": tf.reduce_sum(strong),
            "strong_competitor_place": tf.reduce_sum(strong * place),
        }


def _count(booleans, axis=None):
    return tf.reduce_sum(tf.cast(booleans, "float32"), axis)
