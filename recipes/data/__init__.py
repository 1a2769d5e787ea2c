"""Data modules: digits, MNIST, FashionMNIST, CIFAR, SVHN, STL10 and folders of images.

What they share: choice of samples and classes, labels, scaling, augmentation, downloads.
"""

from ncmonitor.recipes.data.data_modules import CIFAR10Data as CIFAR10Data
from ncmonitor.recipes.data.data_modules import CIFAR100Data as CIFAR100Data
from ncmonitor.recipes.data.data_modules import DigitsData as DigitsData
from ncmonitor.recipes.data.data_modules import FashionMNISTData as FashionMNISTData
from ncmonitor.recipes.data.data_modules import ImageFolderData as ImageFolderData
from ncmonitor.recipes.data.data_modules import MNISTData as MNISTData
from ncmonitor.recipes.data.data_modules import STL10Data as STL10Data
from ncmonitor.recipes.data.data_modules import SVHNData as SVHNData
