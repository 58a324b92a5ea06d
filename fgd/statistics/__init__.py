"""Figures from the detections of finished trainings, and what a difference between them is worth.

    detections.py           the file detections.npz of a job: boxes, ground truth and what was found on each image
    matching.py             which detection is of which box, once for each file
    average_precision.py    COCO's AP and AR, also of thousands of resamples of the images; precision-recall curves
    intervals.py            a difference to the control with its 95 % interval, and how much of the gap is closed
    curves.py               time to quality, and whether a curve stands at a plateau
    confusion.py            which class is taken for which
    per_image.py            what is found and missed on each image, and where two runs differ

Knows numpy alone: no torch, no jobs, no HTTP.
"""
